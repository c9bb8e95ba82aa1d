"""Safetensors files that lie: about lengths, places, shapes, types and values."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

from hostile import Corpus

FILE = "model.safetensors"
WORDS = "bert.embeddings.word_embeddings.weight"
DEEP = "bert.encoder.layer.0.attention.self.query.weight"

HEADERS = Corpus("lying headers")
VALUES = Corpus("weights that are no weights")

_BROKEN = "no whole safetensors file"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def whole(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def raw(name: str, content: bytes, says: str = _BROKEN) -> None:
    HEADERS.add(name, says)(lambda folder: (folder / FILE).write_bytes(content) and None)


def changed(name: str, says: str = _BROKEN):
    """Add a case that edits the header of the sound file; the function may return another body."""

    def taken(edit):
        def make(folder: Path) -> None:
            header, body = parts(folder / FILE)
            body = edit(header, body) or body
            (folder / FILE).write_bytes(whole(header, body))

        HEADERS.add(name, says)(make)

    return taken


def place(name: str, says: str = _BROKEN, *, tensor: str = WORDS, **entry: Any) -> None:
    changed(name, says)(lambda header, body: header[tensor].update(entry))


raw("an empty file", b"")
raw("seven bytes", b"\0" * 7)
raw("a length and nothing more", struct.pack("<Q", 100))
raw("a header longer than the file", whole({"a": 1}, length=10_000))
raw("a header of 2**63 bytes", whole({}, length=2**63))
raw("a header of 2**64 - 1 bytes", whole({}, length=2**64 - 1))
raw("a header of 33 MB", whole({}, length=33 << 20))
raw("a header of no bytes", whole(b""))
raw("a header that is no JSON", whole(b"{'a': 1}"))
raw("a header that is not UTF-8", whole(b'{"\xff": 1}'))
raw("a header that is an array", whole([]))
raw("a header that is null", whole(None))
raw("a header that is a number", whole(7))
raw("a header nested ten thousand deep", whole(b'{"a":' * 10_000 + b"1" + b"}" * 10_000))
raw("metadata nested ten thousand deep", whole(b'{"__metadata__":' + b"[" * 10_000 + b"]" * 10_000 + b"}"))
raw("metadata that is no text", whole({"__metadata__": {"a": 1}}))
raw("a header of metadata alone", whole({"__metadata__": {"format": "pt"}}), "no tensors")
raw("a header without tensors", whole({}), "no tensors")
raw("a tensor that is a number", whole({"a": 1}))
raw("a zip archive", b"PK\x03\x04" + b"\0" * 60)
raw("a web page", b"<!doctype html><title>404</title>" * 3)
raw("a pointer of large file storage", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
raw("a GGUF file", b"GGUF" + b"\3\0\0\0" + b"\0" * 40)
raw("a compressed file", gzip.compress(whole({"a": 1})))

place("offsets beyond the end", data_offsets=[0, 10**9])
place("offsets beyond 64 bits", data_offsets=[0, 2**64])
place("offsets in reverse", data_offsets=[4096, 0])
place("negative offsets", data_offsets=[-8, 8])
place("offsets that are fractions", data_offsets=[0.5, 8])
place("one offset", data_offsets=[0])
place("three offsets", data_offsets=[0, 4, 8])
place("offsets that are text", data_offsets=["0", "8"])
place("no offsets", data_offsets=None)
place("a shape that is larger than its bytes", shape=[10**6, 32])
place("a shape whose product passes 64 bits", shape=[2**32, 2**32, 2**32])
place("a shape whose product is 0 modulo 2**64", shape=[2**32, 2**32])
place("a negative shape", shape=[-1, 32])
place("a shape with a fraction", shape=[1.5, 32])
place("a shape of thirty digits", shape=[10**30])
place("a shape that is text", shape="[58, 32]")
place("no shape", shape=None)
place("an unknown dtype", dtype="F33")
place("a dtype that is a number", dtype=32)
place("a dtype of half the width", dtype="F16")


@changed("two tensors in the same place")
def _(header, body):
    header[DEEP]["data_offsets"] = header[DEEP.replace("query", "key")]["data_offsets"]


@changed("tensors that overlap by one value")
def _(header, body):
    start, end = header[DEEP]["data_offsets"]
    header[DEEP]["data_offsets"] = [start - 4, end - 4]


@changed("a hole between tensors")
def _(header, body):
    last = max(header.values(), key=lambda t: t.get("data_offsets", [0, 0])[1])
    last["data_offsets"] = [at + 64 for at in last["data_offsets"]]
    return body + b"\0" * 64


@changed("bytes after the last tensor")
def _(header, body):
    return body + b"payload"


@changed("a body cut short")
def _(header, body):
    return body[:-1]


def twice(spelled: str) -> bytes:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    return whole(f'{{"a":{entry % (0, 4)},"{spelled}":{entry % (4, 8)}}}'.encode(), b"\0" * 8)


raw("a tensor named twice", twice("a"), f"{_BROKEN}|twice")
raw("a tensor named twice, spelled differently", twice("\\u0061"), f"{_BROKEN}|twice")


@HEADERS.add("a zip bomb", _BROKEN)
def _(folder: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model", b"\0" * (16 << 20))
    (folder / FILE).write_bytes(buffer.getvalue())


def valued(name: str, says: str, *, tensor: str = DEEP, passes: str = ""):
    """Add a case that replaces one tensor of the sound model by what the function makes of it."""

    def taken(edit):
        def make(folder: Path) -> None:
            from safetensors.torch import load_file, save_file

            tensors = load_file(folder / FILE)
            tensors[tensor] = edit(tensors[tensor].clone()).contiguous()
            save_file(tensors, folder / FILE, metadata={"format": "pt"})

        VALUES.add(name, says, passes=passes)(make)

    return taken


def filled(value: float):
    def edit(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return edit


_ODD = "not finite|NaN or infinite"
_UNLIKE = "cannot load|do not fit|cannot tell|width|is .*, wanted|is empty|shape|quantized|no tensor in common|word embeddings are"
valued("a NaN in a layer", _ODD)(filled(math.nan))
valued("an infinity in a layer", _ODD)(filled(math.inf))
valued("a NaN in the embeddings", _ODD, tensor=WORDS)(filled(math.nan))
valued("a negative infinity in the embeddings", _ODD, tensor=WORDS)(filled(-math.inf))
valued("nothing but NaN", _ODD, tensor=WORDS)(lambda t: t * math.nan)
valued("an infinity in the head", _ODD, tensor="classifier.weight")(filled(math.inf))
valued("an infinity in a norm", _ODD, tensor="bert.embeddings.LayerNorm.weight")(filled(math.inf))
valued("embeddings of integers", _UNLIKE, tensor=WORDS)(lambda t: t.long())
valued("a layer of integers", _UNLIKE)(lambda t: t.int())
valued("a layer of booleans", _UNLIKE)(lambda t: t > 0)
valued("a layer of 8-bit floats", _UNLIKE)(lambda t: t.to(__import__("torch").float8_e4m3fn))
valued("embeddings of another width", _UNLIKE, tensor=WORDS)(lambda t: t[:, :16])
valued("embeddings without rows", _UNLIKE, tensor=WORDS)(lambda t: t[:0])
valued("embeddings of one dimension", _UNLIKE, tensor=WORDS)(lambda t: t.reshape(-1))
valued("embeddings that are one number", _UNLIKE, tensor=WORDS)(lambda t: t.sum())
