"""Matrices as operations on weights take them: tensors, arrays, places in files; their dtypes, bytes and row maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asepsis.errors import DataError

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Matrix: TypeAlias = "Tensor | npt.NDArray[Any]"
RowMap: TypeAlias = "Tensor | npt.NDArray[np.integer[Any]] | Sequence[tuple[int, int]]"
Pairs: TypeAlias = "npt.NDArray[np.int64]"
Bytes: TypeAlias = "npt.NDArray[np.uint8]"

#: Bytes per value.
SIZES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
_TENSOR_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ARRAY_DTYPES = (np.float32, np.float16, np.uint16)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A row-major matrix inside a file, as the header of a safetensors file places it.

    Attributes
    ----------
    path
        The file.
    offset
        Bytes before the first value.
    shape
        ``(V, D)``.
    dtype
        How values are stored, little-endian.
    """

    path: str | Path
    offset: int
    shape: tuple[int, int]
    dtype: Dtype


def checked(name: str, matrix: Matrix) -> Matrix:
    """Refuse what is no such matrix; return it without its history, bfloat16 of numpy extensions as uint16."""
    if isinstance(matrix, Tensor):
        matrix = matrix.detach()
        usable = matrix.layout == torch.strided and matrix.dtype in _TENSOR_DTYPES
    elif isinstance(matrix, np.ndarray):
        matrix = np.asarray(matrix)
        if matrix.dtype.name == "bfloat16":
            matrix = matrix.view(np.uint16)
        usable = matrix.dtype in _ARRAY_DTYPES
    else:
        raise DataError(f"{name} must be a torch tensor or a numpy array, got {type(matrix).__name__}")
    if not usable or matrix.ndim != 2 or matrix.shape[1] == 0:
        raise DataError(
            f"{name} must be a [V, D] matrix of float32, float16 or bfloat16 (in numpy uint16) with at least one column, "
            f"got {matrix.dtype} {tuple(matrix.shape)}; convert with .float()"
        )
    return matrix


def versions(reference: Matrix, tuned: Matrix) -> tuple[Matrix, Matrix]:
    """Refuse what are not matrices on one device; return both as :func:`checked` does."""
    p, f = checked("reference", reference), checked("tuned", tuned)
    if device_of(p) != device_of(f):
        raise DataError(
            f"reference is on {device_of(p)} and tuned on {device_of(f)}; bring both to one device"
        )
    return p, f


def off_cpu(matrix: Matrix) -> str | None:
    """Return why the Rust core cannot read a matrix, as ``select`` wants it; None where it can."""
    device = device_of(matrix)
    if device.type == "cpu":
        return None
    return f"the matrices are on {device}, the Rust core reads CPU memory (.cpu())"


def pairs_of(row_map: RowMap | None, reference: tuple[int, ...], tuned: tuple[int, ...]) -> Pairs | None:
    """Validate a row map against the shapes of both sides, [N, 2] int64; None where row i goes with row i."""
    if reference[1] != tuned[1]:
        raise DataError(
            f"reference has {reference[1]} columns and tuned {tuned[1]}: they are not versions of one matrix"
        )
    if row_map is None:
        if reference[0] != tuned[0]:
            raise DataError(
                f"reference has {reference[0]} rows and tuned {tuned[0]}; pass row_map=[[reference row, tuned row], ...] "
                "for the tokens that both have"
            )
        return None
    if isinstance(row_map, Tensor):
        row_map = row_map.detach().cpu().numpy()
    pairs = np.asarray(row_map)
    if pairs.size == 0 and pairs.ndim == 1:
        pairs = pairs.reshape(0, 2).astype(np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise DataError(f"row_map must be [N, 2] integers, got {pairs.dtype} {pairs.shape}")
    pairs = pairs.astype(np.int64)
    for side, name, rows in ((0, "reference", reference[0]), (1, "tuned", tuned[0])):
        outside = (pairs[:, side] < 0) | (pairs[:, side] >= rows)
        if outside.any():
            at = int(outside.argmax())
            raise DataError(
                f"row_map[{at}] names row {pairs[at, side]} of {name}, which has {rows}; leave out tokens that one side lacks"
            )
    return pairs


def dtype_name(what: str, dtype: object) -> Dtype:
    """Name a dtype given by name, by torch or by numpy."""
    for name in SIZES:
        if str(dtype).removeprefix("torch.") == name:
            return name
    raise DataError(f"{what} must be one of {', '.join(SIZES)}, got {dtype!r}")


def rounding(round_to: object) -> Dtype | None:
    """Name the dtype that a reference is rounded to, None where it is not."""
    return None if round_to is None else dtype_name("round_to", round_to)


def dtype_of(matrix: Matrix) -> Dtype:
    """Name the dtype of a checked matrix."""
    return "bfloat16" if matrix.dtype == np.uint16 else dtype_name("dtype", matrix.dtype)


def device_of(matrix: Matrix) -> torch.device:
    """Where a matrix is; numpy is on the CPU."""
    return matrix.device if isinstance(matrix, Tensor) else torch.device("cpu")


def bytes_of(matrix: Matrix) -> Bytes:
    """Return the values as uint8[V, D * itemsize], copied only where those of a row are not side by side."""
    if isinstance(matrix, Tensor):
        if matrix.stride(1) != 1:
            matrix = matrix.clone(memory_format=torch.contiguous_format)
        array: npt.NDArray[Any] = matrix.view(torch.uint8).numpy()
    else:
        array = matrix if matrix.strides[1] == matrix.itemsize else matrix.copy(order="C")
    return array.view(np.uint8)


def floats_of(matrix: Matrix, rows: npt.NDArray[np.int64]) -> Tensor:
    """Return rows of a checked matrix in float32, on its device."""
    if isinstance(matrix, Tensor):
        return matrix[torch.from_numpy(rows).to(matrix.device)].float()
    picked = matrix[rows]
    if picked.dtype == np.uint16:
        return torch.from_numpy(picked.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(picked).float()


def deltas_of(
    reference: Matrix, tuned: Matrix, pairs: Pairs, round_to: Dtype | None
) -> tuple[Tensor, Tensor]:
    """Return rows of a checked reference, rounded, and how far those of tuned are from them; float32 ``[N, D]`` each."""
    p = floats_of(reference, pairs[:, 0])
    if round_to is not None:
        p = p.to(getattr(torch, round_to)).float()
    return p, floats_of(tuned, pairs[:, 1]) - p


def mapped(name: str, stored: Stored) -> Bytes:
    """Map the bytes of a matrix in a file, uint8[V, D * itemsize], without reading them."""
    dtype = dtype_name(f"dtype of {name}", stored.dtype)
    rows, width = stored.shape
    if rows < 0 or width < 1 or stored.offset < 0:
        raise DataError(
            f"{name} must be at an offset >= 0 with a shape of (V, D), D >= 1; got {stored.offset}, {stored.shape}"
        )
    shape = (rows, width * SIZES[dtype])
    if not Path(stored.path).is_file():
        raise DataError(f"{stored.path}: there is no such file to map {name} from")
    size, wanted = Path(stored.path).stat().st_size, shape[0] * shape[1]
    if stored.offset + wanted > size:
        raise DataError(
            f"{stored.path}: {name} is {wanted} bytes from {stored.offset} on, the file has {size}; "
            "it was cut short, or offset and shape are not its own"
        )
    if rows == 0:
        return np.empty(shape, np.uint8)
    try:
        return np.asarray(np.memmap(stored.path, np.uint8, "r", stored.offset, shape))
    except (OSError, ValueError) as problem:
        raise DataError(f"{stored.path}: {name} cannot be mapped: {problem}") from problem
