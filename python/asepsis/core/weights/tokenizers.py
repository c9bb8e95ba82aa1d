"""What a tokenizer may be before another library runs it: it is a small program, and it is run on every text.

Its file can name a regular expression that never comes to an end, replace a letter by a thousand, twenty times over, or hold
a word that is deeper than the stack. So its numbers, its patterns and how far it can make a text grow are looked at first.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asepsis.core.documents import read_json
from asepsis.core.weights.folders import inside, read_object
from asepsis.core.weights.patterns import cost
from asepsis.data.values import shown
from asepsis.errors import ModelError

#: Bytes of the largest tokenizer file that is read; those of 262,144 tokens have 33 million.
MOST_BYTES = 64 << 20
#: The largest id a token may have, some 30 times the largest vocabulary: tables by id are made.
MOST_ID = (1 << 23) - 1
#: Tokens added to a tokenizer: each is searched for in every text, and building that search takes long.
MOST_ADDED = 100_000
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")

# letters of one token, and of all that stand in one tree: it takes 350 bytes for each, and is as deep as a token is long
_LONGEST, _MOST_LETTERS = 4096, 1 << 22
# letters of a word that is cut into pieces: the time grows with its cube
_LONGEST_WORD = 256
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MOST_STEPS = 500  # objects in one of these
_MOST_IDS = 64  # that a post-processor writes for one token
# how many letters can come of one; the forms of compatibility make 18 of a very rare one
_GROWTH = {
    "NFC": 2,
    "NFD": 2,
    "NFKC": 4,
    "NFKD": 4,
    "Lowercase": 2,
    "BertNormalizer": 2,
    "Precompiled": 4,
    "ByteLevel": 4,
    "Metaspace": 2,
}
_MOST_GROWTH = 256
_LONGEST_FORM = 256
_MOST_LOOPS, _MOST_CHOICES = 2, 6


def admit_tokenizer(folder: Path) -> None:
    """Raise ``ModelError`` where a folder's tokenizer links out of it, is too large to be one, or could run for ever."""
    for name in _FILES:
        path = inside(folder, name)
        if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
            raise ModelError(f"{path} has {size:,} bytes, no tokenizer has more than {MOST_BYTES:,}")
    if (fast := inside(folder, "tokenizer.json")).is_file():
        _check_fast(fast)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        content = read_object(folder, name)
        listed = content.get("added_tokens_decoder")
        added = listed if isinstance(listed, dict) else content if name == "added_tokens.json" else {}
        if len(added) > MOST_ADDED:
            raise ModelError(f"{folder / name} adds {len(added):,} tokens, {MOST_ADDED:,} at most are taken")


def _check_fast(path: Path) -> None:
    try:
        content = read_json(path, most=MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; download it again") from error
    content = content if isinstance(content, dict) else {}
    added, model = content.get("added_tokens"), content.get("model")
    listed = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    if len(listed) > MOST_ADDED:
        raise ModelError(f"{path} adds {len(listed):,} tokens, {MOST_ADDED:,} at most are taken")
    model = model if isinstance(model, dict) else {}
    _check_words(path, model, listed)
    growth = dict.fromkeys(_PARTS, 1)
    for part in _PARTS:
        steps = list(_steps(content.get(part)))
        if len(steps) > _MOST_STEPS:
            raise ModelError(f"{path}: its {part} has {len(steps):,} parts, {_MOST_STEPS} at most are taken")
        for step in steps:
            _check_step(path, step)
            growth[part] *= _grown(path, step)
    for what, times in (
        ("before it is cut into tokens", growth["normalizer"] * growth["pre_tokenizer"]),
        ("when it is put together from tokens", growth["decoder"]),
    ):
        if times > _MOST_GROWTH:
            raise ModelError(
                f"{path} can make a text {shown(times)} times as long {what}, {_MOST_GROWTH} at most is taken"
            )


def _check_words(path: Path, model: dict[str, Any], added: list[Any]) -> None:
    vocab = model.get("vocab")
    ids = [*vocab.values()] if isinstance(vocab, dict) else []
    ids += [entry.get("id") for entry in added]
    if odd := [at for at in ids if type(at) is not int or not 0 <= at <= MOST_ID]:
        raise ModelError(f"{path} gives a token the id {shown(odd[0])}; ids lie in 0..{MOST_ID:,}")
    words = [*vocab] if isinstance(vocab, dict) else []
    contents = [text for entry in added if isinstance(text := entry.get("content"), str)]
    pieces = (
        [entry[0] for entry in vocab if isinstance(entry, list) and entry] if isinstance(vocab, list) else []
    )
    for text in (*words, *contents, *pieces):
        if isinstance(text, str) and len(text) > _LONGEST:
            raise ModelError(f"{path} has a token of {len(text):,} letters, {_LONGEST:,} at most are taken")
    for tree in (contents, pieces):
        if (letters := sum(len(text) for text in tree if isinstance(text, str))) > _MOST_LETTERS:
            raise ModelError(f"{path} has tokens of {letters:,} letters, {_MOST_LETTERS:,} at most are taken")
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > _LONGEST_WORD:
        raise ModelError(
            f"{path}: max_input_chars_per_word is {shown(longest)}, {_LONGEST_WORD} at most is taken: the time to cut a word "
            "into pieces grows with the cube of its letters"
        )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a part, however deep; kinds are not asked for: older files leave them out."""
    waiting = [part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += [one for one in value if isinstance(one, (dict, list))]


def _check_step(path: Path, step: dict[str, Any]) -> None:
    if isinstance(pattern := step.get("Regex"), str):
        _check_pattern(path, pattern)
    ids = step.get("ids")
    if isinstance(ids, list) and len(ids) > _MOST_IDS:
        raise ModelError(
            f"{path}: its post_processor writes {len(ids):,} ids for a token, {_MOST_IDS} at most are taken"
        )


def _check_pattern(path: Path, pattern: str) -> None:
    try:
        found = cost(pattern, nested=True)
    except ValueError as error:
        raise ModelError(
            f"{path} has the pattern {pattern[:60]!r}, which could take for ever: {error}"
        ) from error
    if found.loops > _MOST_LOOPS or found.choices > _MOST_CHOICES:
        raise ModelError(
            f"{path} has the pattern {pattern[:60]!r}, which could take for ever: {found.loops} repeats and {found.choices} "
            f"choices follow each other, {_MOST_LOOPS} and {_MOST_CHOICES} at most are taken"
        )


def _grown(path: Path, step: dict[str, Any]) -> int:
    """Return how many letters a step can make of one."""
    pattern, content, before = step.get("pattern"), step.get("content"), step.get("prepend")
    if isinstance(before, str):
        return 1 + len(before)
    if isinstance(content, str):
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        # an expression may match nothing, between any two letters
        return (
            1 + len(content)
            if not isinstance(plain, str) or not plain
            else max(1, -(-len(content) // len(plain)))
        )
    forms = step.get("precompiled_charsmap")
    if isinstance(forms, str) and (longest := _longest_form(forms)) > _LONGEST_FORM:
        raise ModelError(
            f"{path}: its normalizer writes {longest:,} bytes for a letter, {_LONGEST_FORM} at most are taken"
        )
    if "type" not in step:  # the pattern of another, or a step as older files have it, of any kind
        return 1 if step.keys() <= {"Regex", "String"} else max(_GROWTH.values())
    return _GROWTH.get(str(step["type"]), 1)


def _longest_form(encoded: str) -> int:
    """Return the bytes of the longest replacement in a table that SentencePiece compiled: a tree, then its leaves."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return 0  # the library refuses it
    start = 4 + int.from_bytes(raw[:4], "little")
    return max(map(len, raw[start:].split(b"\0")), default=0)
