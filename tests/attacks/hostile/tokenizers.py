"""Tokenizers with tokens without end, patterns that never end, and steps that make a text grow without end."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from hostile import Corpus
from hostile.folders import FILES, edited, text

TOKENIZERS = Corpus("tokenizers")


def fast(name: str, says: str, *, passes: str = ""):
    """Add a case that edits ``tokenizer.json``."""

    def taken(edit):
        def make(folder: Path) -> None:
            content = json.loads((folder / "tokenizer.json").read_text())
            content = edit(content) or content
            (folder / "tokenizer.json").write_text(json.dumps(content))

        TOKENIZERS.add(name, says, passes=passes)(make)

    return taken


def token(at: Any, content: str = "evil") -> dict[str, Any]:
    marks = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": at, "content": content, **marks}


def cut(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replaced(pattern: dict[str, str], by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": by}


def several(name: str, steps: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: steps}


def template(single: list[Any], **special: Any) -> dict[str, Any]:
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def table_of(raw: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def tree(pieces: list[Any]) -> dict[str, Any]:
    return {"type": "Unigram", "unk_id": 0, "vocab": [["[UNK]", 0.0], *pieces], "byte_fallback": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


for odd in (2**32 - 1, 2**40, -1, 1.5, "7", None, 10**30):
    fast(f"a word with the id {odd!r}", "gives a token the id")(
        lambda content, odd=odd: content["model"]["vocab"].update(evil=odd)
    )
    fast(f"an added token with the id {odd!r}", "gives a token the id")(
        lambda content, odd=odd: content["added_tokens"].append(token(odd))
    )
fast("a hundred thousand added tokens and one", "adds 100,00[0-9]")(
    lambda content: content["added_tokens"].extend(token(99, f"t{i}") for i in range(100_001))
)
_EVER = "could take for ever"
for pattern in (
    "(a+)+$",
    "(a|a)*$",
    "(?:a?){40}a{40}",
    "(.*)\\1$",
    "(?<x>a\\g<x>?)+$",
    "[^x]*[^y]*[^z]*[a]",
    "(a{2,3}+)+$",
    "\\c[(a+)+]",
    "a?b?c?d?e?f?g?",
    "(?~(a*)*)",
):
    fast(f"a cut by the pattern {pattern}", _EVER)(
        lambda content, pattern=pattern: content.update(pre_tokenizer=cut(pattern))
    )
fast("a normalizer with a pattern that never ends", _EVER)(
    lambda content: content.update(normalizer=replaced({"Regex": "(a|b|ab)*c"}, ""))
)
fast("a pattern that never ends, deep inside", _EVER)(
    lambda content: content.update(
        pre_tokenizer=several("pretokenizers", [several("pretokenizers", [cut("(a*)*")])])
    )
)
fast("a decoder with a pattern that never ends", _EVER)(
    lambda content: content.update(decoder=replaced({"Regex": "(a*)*b"}, ""))
)
_LONGER = "times as long"
fast("a letter that becomes two, thirty times over", _LONGER)(
    lambda content: content.update(normalizer=several("normalizers", [replaced({"String": "a"}, "aa")] * 30))
)
fast("a letter that becomes a thousand", _LONGER)(
    lambda content: content.update(normalizer=replaced({"String": "a"}, "a" * 1000))
)
fast("a thousand letters between any two", _LONGER)(
    lambda content: content.update(normalizer=replaced({"Regex": ""}, "a" * 1000))
)
fast("a step without its kind that writes a thousand letters", _LONGER)(
    lambda content: content.update(normalizer={"pattern": {"String": "a"}, "content": "b" * 1000})
)
fast("a thousand letters before each part", _LONGER)(
    lambda content: content.update(normalizer={"type": "Prepend", "prepend": "a" * 1000})
)
fast("bytes that become letters, ten times over", _LONGER)(
    lambda content: content.update(pre_tokenizer=several("pretokenizers", [BYTES] * 10))
)
fast("a decoder that writes a thousand letters", _LONGER)(
    lambda content: content.update(decoder=replaced({"String": "a"}, "a" * 1000))
)
fast("a thousand steps", "500 at most")(
    lambda content: content.update(normalizer=several("normalizers", [{"type": "NFC"}] * 1000))
)
fast("a text that is written a thousand times", "500 at most")(
    lambda content: content.update(post_processor=template([{"Sequence": {"id": "A", "type_id": 0}}] * 1000))
)
fast("a mark of a million tokens", "64 at most")(
    lambda content: content.update(
        post_processor=template(
            [{"SpecialToken": {"id": "m", "type_id": 0}}],
            m={"id": "m", "ids": [0] * 10**6, "tokens": ["m"] * 10**6},
        )
    )
)
fast("a letter that a table turns into a thousand", "writes 1,000 bytes")(
    lambda content: content.update(normalizer=table_of(b"\0\0\0\0" + b"a" * 1000 + b"\0"))
)
fast("a table of letters that leads out of itself", "no tokenizer|cannot", passes=FILES)(
    lambda content: content.update(normalizer=table_of(b"\x08\0\0\0" + b"\xff" * 8 + b"abc\0"))
)
_LETTERS = "letters, [0-9,]+ at most"
fast("a word of two million letters", _LETTERS)(
    lambda content: content["model"]["vocab"].update({"a" * (2 << 20): 3})
)
fast("an added token of two million letters", _LETTERS)(
    lambda content: content["added_tokens"].append(token(99, "a" * (2 << 20)))
)
fast("a tree deeper than the stack", _LETTERS)(
    lambda content: content.update(model=tree([["a" * (2 << 20), -1.0]]))
)
fast("a tree of ten million letters", _LETTERS)(
    lambda content: content.update(model=tree([[f"{i:04}" * 1000, -1.0] for i in range(2500)]))
)
fast("words of a billion letters cut into pieces", "max_input_chars_per_word")(
    lambda content: content["model"].update(max_input_chars_per_word=10**9)
)
_UNREADABLE = "cannot be read|no tokenizer|cannot load"
fast("a tokenizer without a model", _UNREADABLE)(lambda content: content.pop("model") and None)
fast("a tokenizer of an unknown kind", _UNREADABLE)(lambda content: content["model"].update(type="Evil"))
fast("a vocabulary that is a list", _UNREADABLE)(lambda content: content["model"].update(vocab=["a"]))
fast("a tokenizer that is a list", _UNREADABLE)(lambda content: [content])
text(TOKENIZERS, "a tokenizer that is no JSON", "tokenizer.json", "{", _UNREADABLE)
text(TOKENIZERS, "a tokenizer nested without end", "tokenizer.json", "[" * 10**5, "deep|cannot be read")
text(TOKENIZERS, "a tokenizer that says two things", "tokenizer.json", '{"model": 1, "model": 2}', "twice")
text(
    TOKENIZERS,
    "settings of the tokenizer that are a list",
    "tokenizer_config.json",
    "[]",
    "must be a JSON object",
)
text(
    TOKENIZERS,
    "settings of the tokenizer nested without end",
    "tokenizer_config.json",
    "[" * 10**5,
    "deep|not JSON",
)


@TOKENIZERS.add("a tokenizer of 65 MB", "no tokenizer has more")
def _(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(65 << 20)


@TOKENIZERS.add("settings that add a hundred thousand tokens and one", "adds 100,001 tokens")
def _(folder: Path) -> None:
    edited(folder, "tokenizer_config.json", added_tokens_decoder={str(i): {} for i in range(100_001)})


@TOKENIZERS.add("tokens that the embeddings have no row for", "no row", passes=FILES)
def _(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["topic0a"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content))


@TOKENIZERS.add(
    "a vocabulary that is not UTF-8", "not UTF-8|no tokenizer|cannot", passes="train evaluate guard"
)
def _(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
