"""Write a checkpoint without ever holding one: files sized first, tensors filled in place."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from asepsis.core.weights.folders import INDEX, PICKLES, inside
from asepsis.errors import ConfigError

#: Bytes per value, by the name safetensors gives a dtype.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"U64": 8, "U32": 4, "U16": 2}

# other people's programs, which a model folder must not carry on, and other formats of weights
_LEFT = (".safetensors", ".py", ".pyc", ".so", ".gguf", ".onnx", ".msgpack", *PICKLES)


class SafetensorsWriter:
    """A safetensors file that is filled tensor by tensor, through maps of its place in the file.

    Parameters
    ----------
    path
        The file, which must not exist.
    tensors
        ``(name, dtype, shape)`` of every tensor, with dtypes as safetensors names them.
    metadata
        Strings for the header; transformers wants ``{"format": "pt"}``, the default.

    Raises
    ------
    ConfigError
        A name occurs twice, or a dtype is unknown.
    OSError
        The file exists, or there is no room for it.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        header: dict[str, object] = {"__metadata__": dict({"format": "pt"} if metadata is None else metadata)}
        self._places: dict[str, tuple[int, int]] = {}
        at = 0
        listed = list(tensors)
        for name, dtype, shape in listed:
            if name in self._places or name == "__metadata__" or dtype not in SIZES:
                raise ConfigError(
                    f"{path.name}: cannot hold {name!r} as {dtype}: it is there twice, or unknown"
                )
            self._places[name] = (at, SIZES[dtype] * math.prod(shape))
            at += self._places[name][1]
        # the widest first, so that every tensor begins at a multiple of its width
        at = 0
        for name, dtype, shape in sorted(listed, key=lambda entry: (-SIZES[entry[1]], entry[0])):
            length = self._places[name][1]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + length]}
            self._places[name] = (at, length)
            at += length
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        with path.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(self._start + at)
            if at and hasattr(os, "posix_fallocate"):
                # a full disk is an error here, and a fatal signal when a map is written
                file.flush()
                os.posix_fallocate(file.fileno(), 0, self._start + at)

    def region(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of a tensor, mapped for writing; they are in the file when the array is gone."""
        at, length = self._places[name]
        if length == 0:
            return np.empty(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r+", self._start + at, (length,))

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.path.unlink(missing_ok=True)


def copy_checkpoint_except(folder: Path, output: Path, *, leave: Collection[str] = ()) -> list[str]:
    """Copy what lies beside the weights: configuration, tokenizer, model card. Return the names copied.

    Weights in any format, programs, hidden files, folders and the names in ``leave`` stay behind.

    Raises
    ------
    ModelError
        A file is a link that leads out of the folder.
    """
    copied = []
    for entry in sorted(folder.iterdir()):
        skipped = entry.name.startswith(".") or entry.suffix in _LEFT or entry.name in {INDEX, *leave}
        if skipped or not inside(folder, entry.name).is_file():
            continue
        shutil.copyfile(entry, output / entry.name)
        copied.append(entry.name)
    return copied
