"""What a safetensors file says it holds, checked and not read: names, dtypes, shapes, places."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from asepsis.core.documents import MOST_BYTES, once
from asepsis.errors import ModelError
from asepsis.kernels._matrices import Dtype, Stored

#: Floating dtypes that rows can be compared in, as safetensors names them.
DTYPES: dict[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a safetensors file, not read.

    Attributes
    ----------
    name
        As the file names it.
    path
        The file.
    offset
        Bytes before its first value, from the start of the file.
    shape
        As stored.
    dtype
        As safetensors names it: ``"F32"``, ``"BF16"``, ``"I64"``, ...
    nbytes
        Its length in the file.
    """

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def floating(self) -> bool:
        """Whether the values are floats of 16 bits or more."""
        return self.dtype in DTYPES or self.dtype == "F64"

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def matrix(self) -> Stored:
        """Return it as ``[V, D]``: one dimension as one row, more than two as ``(shape[0], rest)``.

        Raises
        ------
        ModelError
            It is not float32, float16 or bfloat16, or empty.
        """
        dtype = DTYPES.get(self.dtype)
        if dtype is None:
            raise ModelError(
                f"{self.path.name}: {self.name} is {self.dtype}, rows are compared in {', '.join(DTYPES)}; "
                "save the model as one of those with model.to(torch.float32).save_pretrained(...)"
            )
        if self.count == 0:
            raise ModelError(f"{self.path.name}: {self.name} is empty, {self.shape}")
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return Stored(path=self.path, offset=self.offset, shape=(rows, self.count // rows), dtype=dtype)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file in name order, after the safetensors library has checked its header.

    Raises
    ------
    ModelError
        The file is no safetensors file, was cut short, names a tensor twice, or has a header of more than 32 MB.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MOST_BYTES:  # the library would take three times that
                raise ValueError(f"its header claims {length:,} bytes")
            with safe_open(str(path), framework="np"):
                pass
            header = json.loads(file.read(length), object_pairs_hook=lambda pairs: once(pairs, path.name))
    except (OSError, SafetensorError, ValueError, struct.error, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path} is no whole safetensors file: {error}; download it again, or save the model with safetensors"
        ) from error
    start = 8 + length
    tensors = {}
    for name in sorted(header.keys() - {"__metadata__"}):
        place = header[name]
        begin, end = place["data_offsets"]
        tensors[name] = StoredTensor(
            name=name,
            path=path,
            offset=start + begin,
            shape=tuple(place["shape"]),
            dtype=place["dtype"],
            nbytes=end - begin,
        )
    return tensors


def same_bytes(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two tensors are the same bit for bit; stops reading where they differ."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    for start in range(0, left.nbytes, _CHUNK):
        length = min(_CHUNK, left.nbytes - start)
        a, b = (np.memmap(t.path, np.uint8, "r", t.offset + start, (length,)) for t in (left, right))
        if not np.array_equal(a, b):
            return False
    return True
