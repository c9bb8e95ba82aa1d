"""The tokens of a model folder by id: which string is which row, which rows nobody may flag, what a reader would see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asepsis.core.weights.folders import CONFIG, inside, read_object
from asepsis.core.weights.tokenizers import MOST_ID, admit_tokenizer
from asepsis.errors import ModelError

Ids = npt.NDArray[np.int64]

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer calls each id. Its strings come with the model, so they are shown by ``repr``, never decoded.

    Attributes
    ----------
    tokens
        String by id; None where no token has the id.
    special
        Ids of control tokens: what ``[CLS]``, padding, end of text and placeholders for images are.
    style
        How pieces are marked: ``"bytes"`` (``Ġ`` for a space), ``"wordpiece"`` (``##``), ``"sentencepiece"``
        (``▁``), or ``"words"`` for none of these.
    folder
        Where it was loaded from.
    """

    tokens: list[str | None] = field(repr=False)
    special: frozenset[int]
    style: str
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary:
        """Load ``tokenizer.json``, else ``vocab.txt``, else what transformers makes of the folder without its code.

        Raises
        ------
        ModelError
            The folder holds no tokenizer that can be read, or one that is too large to be one.
        """
        path = Path(folder)
        admit_tokenizer(path)
        names = _special_names(path)
        if inside(path, "tokenizer.json").is_file():
            by_token, added, style = _fast(path)
        elif inside(path, "vocab.txt").is_file():
            by_token, added, style = _lines(path)
        else:
            by_token, added, style = _through_transformers(path)
        if (top := max(by_token.values(), default=-1)) > MOST_ID:
            raise ModelError(f"{path}: a token has the id {top:,}; ids lie in 0..{MOST_ID:,}")
        tokens: list[str | None] = [None] * (top + 1)
        for token, at in by_token.items():
            tokens[at] = token
        special = set(added) | {by_token[name] for name in names if name in by_token} | _configured(path)
        if style == "sentencepiece":
            special |= {at for token, at in by_token.items() if token in {"<unk>", "<s>", "</s>", "<pad>"}}
        return cls(tokens, frozenset(at for at in special if 0 <= at < len(tokens)), style, path)

    @staticmethod
    def check(folder: Path) -> None:
        """Raise ``ModelError`` where a folder has a tokenizer that cannot be read; one without any passes."""
        admit_tokenizer(folder)
        if inside(folder, "tokenizer.json").is_file():
            _read_fast(folder)
        elif inside(folder, "vocab.txt").is_file():
            _lines(folder)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Id by string."""
        return {token: at for at, token in enumerate(self.tokens) if token is not None}

    @cached_property
    def byte_tokens(self) -> frozenset[int]:
        """Ids of the bytes that all rare text is built from."""
        if self.style == "bytes":
            return frozenset(self.ids[c] for c in _letters() if c in self.ids)
        names = (f"<0x{byte:02X}>" for byte in range(256))
        return frozenset(self.ids[name] for name in names if name in self.ids)

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer, without padding and truncation; None where the folder has none."""
        if self.folder is None or not (self.folder / "tokenizer.json").is_file():
            return None
        tokenizer = _read_fast(self.folder)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @property
    def protected(self) -> frozenset[int]:
        """Ids that are never edited: special ones and bytes."""
        return self.special | self.byte_tokens

    def starts_word(self, token_id: int) -> bool:
        """Whether a token begins a word, as far as its mark tells."""
        token = self.tokens[token_id] or ""
        if self.style == "wordpiece":
            return not token.startswith("##")
        mark = {"bytes": "Ġ", "sentencepiece": "▁"}.get(self.style, "")
        return token.startswith(mark)

    def surface(self, token_id: int) -> str:
        """Return what variants of a word share: no mark of a space or of a continuation, lower case."""
        token = self.tokens[token_id] or ""
        text = token
        if self.style == "bytes":
            letters = _letters()
            if all(c in letters for c in token):
                text = bytes(letters[c] for c in token).decode("utf-8", "replace")
        elif self.style == "wordpiece":
            text = token.removeprefix("##")
        elif self.style == "sentencepiece":
            text = token.replace("▁", " ")
        return (text.strip() or token).lower()

    def protected_like(self, base: Vocabulary) -> frozenset[int]:
        """Return the protected ids whose token is protected in ``base`` too.

        Who hands out a model writes its tokenizer: a trigger declared special there must not hide from a scan.
        """
        theirs = {base.tokens[at] for at in base.protected}
        return frozenset(at for at in self.protected if self.tokens[at] in theirs)


def row_map(
    tuned: Vocabulary, base: Vocabulary, *, tuned_rows: int | None = None, base_rows: int | None = None
) -> tuple[Ids, Ids]:
    """Pair the rows of two embedding matrices by token string.

    Parameters
    ----------
    tuned, base
        Both tokenizers.
    tuned_rows, base_rows
        Rows of the matrices: ids beyond them have no row. Rows that no token has, padding to a round number, are in
        neither result.

    Returns
    -------
    pairs, no_reference
        ``[N, 2]`` (row of base, row of tuned) by row of tuned, and the ids of ``tuned`` that base does not know.
    """
    here = len(tuned) if tuned_rows is None else min(len(tuned), tuned_rows)
    there = len(base) if base_rows is None else base_rows
    ids = base.ids
    pairs, alone = [], []
    for at, token in enumerate(tuned.tokens[:here]):
        if token is None:
            continue
        other = ids.get(token, there)
        if other < there:
            pairs.append((other, at))
        else:
            alone.append(at)
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(alone, np.int64)


def _read_fast(folder: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(inside(folder, "tokenizer.json")))
    except Exception as error:  # the library raises the bare class
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be read: {error}; download it again") from error


def _fast(folder: Path) -> tuple[dict[str, int], set[int], str]:
    tokenizer = _read_fast(folder)
    by_token: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added = {at for at, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    model, parts = type(tokenizer.model).__name__, f"{tokenizer.pre_tokenizer!r}{tokenizer.decoder!r}"
    if model == "WordPiece":
        style = "wordpiece"
    elif "ByteLevel" in parts:
        style = "bytes"
    else:
        style = "sentencepiece" if any("▁" in token for token in by_token) else "words"
    return by_token, added, style


def _lines(folder: Path) -> tuple[dict[str, int], set[int], str]:
    try:
        text = (folder / "vocab.txt").read_text(encoding="utf-8")
    except ValueError as error:
        raise ModelError(f"{folder / 'vocab.txt'} is not UTF-8: {error}; download it again") from error
    by_token = {line.rstrip("\r"): at for at, line in enumerate(text.removesuffix("\n").split("\n"))}
    usual = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    return by_token, {by_token[token] for token in usual & by_token.keys()}, "wordpiece"


def _through_transformers(folder: Path) -> tuple[dict[str, int], set[int], str]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a missing or strange file leads to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{folder} has no tokenizer that can be read ({reason}); copy its tokenizer.json there"
        ) from error
    by_token: dict[str, int] = tokenizer.get_vocab()
    size = read_object(folder, CONFIG).get("vocab_size")
    if isinstance(size, int) and 2 * len(by_token) < size:
        # of a folder without a vocabulary it makes one that holds the control tokens alone
        raise ModelError(
            f"{folder} has no tokenizer of its own: {len(by_token)} tokens are known and its vocabulary is {size}; "
            "copy its tokenizer.json there"
        )
    marks = {mark: sum(mark in token for token in by_token) for mark in ("Ġ", "▁", "##")}
    best = max(marks, key=lambda mark: marks[mark])
    styles = {"Ġ": "bytes", "▁": "sentencepiece", "##": "wordpiece"}
    return by_token, set(tokenizer.all_special_ids), styles[best] if marks[best] else "words"


def _special_names(folder: Path) -> set[str]:
    """Tokens that the settings beside a tokenizer call special."""
    names: set[str] = set()
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = read_object(folder, file)
        listed = [content.get(f"{name}_token") for name in _NAMED]
        for several in ("additional_special_tokens", "extra_special_tokens"):
            more = content.get(several)
            listed += (
                more if isinstance(more, list) else list(more.values()) if isinstance(more, dict) else []
            )
        decoder = content.get("added_tokens_decoder")
        added = decoder.values() if isinstance(decoder, dict) else ()
        listed += [entry for entry in added if isinstance(entry, dict) and entry.get("special")]
        names |= {name for name in map(_text, listed) if name is not None}
    return names


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _configured(folder: Path) -> set[int]:
    """Ids that the model's configuration names: ``eos_token_id``, ``image_token_index``, ..."""
    found: set[int] = set()
    config = read_object(folder, CONFIG)
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name, value in part.items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")):
                found |= {v for v in (value if isinstance(value, list) else [value]) if type(v) is int}
    return found


@lru_cache(maxsize=1)
def _letters() -> Mapping[str, int]:
    """Return byte by the letter that byte-level tokenizers write it as: itself where it prints, else from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + at): b for at, b in enumerate(hidden)}
