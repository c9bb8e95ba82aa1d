"""How far every row of a matrix moved, from one pass over both versions of it.

Contract: with ``delta = float32(tuned) - float32(reference)``, rounded to float32, the sums of :class:`RowStats` per
row: delta², delta·reference, reference², \\|delta\\| to 1e-5 (delta·reference relative to the two norms), the largest
\\|delta\\| exactly, and counts of zeros and of what is not finite. Matrices are ``[V, D]``, float32, float16 or
bfloat16 each; a stride between rows is no copy. The native path gives the same bits for any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asepsis.kernels._dispatch import Backend, select
from asepsis.kernels._matrices import (
    SIZES,
    Bytes,
    Dtype,
    Matrix,
    Pairs,
    RowMap,
    Stored,
    bytes_of,
    deltas_of,
    device_of,
    dtype_of,
    mapped,
    off_cpu,
    pairs_of,
    rounding,
    versions,
)
from asepsis.kernels._moments import RowStats

# rows that the reference holds in float64 at a time
_BLOCK = 256


def row_stats(
    reference: Matrix,
    tuned: Matrix,
    *,
    row_map: RowMap | None = None,
    columns: bool = False,
    round_to: Dtype | torch.dtype | None = None,
    backend: Backend = "auto",
) -> RowStats:
    """Compare two versions of a matrix row by row.

    Parameters
    ----------
    reference, tuned
        ``[V, D]`` tensors, or numpy arrays in which uint16 stands for the bits of bfloat16.
    row_map
        ``[N, 2]``: the rows to compare, (row of reference, row of tuned). Without it the two have the same rows.
    columns
        Sum up columns too.
    round_to
        Round the reference to this dtype first: that of ``tuned``, where a checkpoint was saved in 16 bits, so that
        the rounding itself is no delta.
    backend
        ``"native"`` is the Rust core, on as many threads as torch uses: CPU memory, one read of both matrices.
        ``"reference"`` is torch, in float64 blocks.

    Raises
    ------
    DataError
        The matrices are not two-dimensional, not of a listed dtype, on two devices or of two shapes, or the row map
        names a row that is not there.
    BackendError
        The backend that was asked for cannot run on these matrices.
    """
    p, f = versions(reference, tuned)
    pairs = pairs_of(row_map, tuple(p.shape), tuple(f.shape))
    to = rounding(round_to)
    if select("row_stats", backend, {"native": off_cpu(p), "reference": None}) == "native":
        return _native((bytes_of(p), dtype_of(p)), (bytes_of(f), dtype_of(f)), pairs, to, columns=columns)
    return _reference(p, f, pairs, to, columns=columns)


def row_stats_files(
    reference: Stored,
    tuned: Stored,
    *,
    row_map: RowMap | None = None,
    columns: bool = False,
    round_to: Dtype | torch.dtype | None = None,
) -> RowStats:
    """Compare two matrices that stay in their files: :func:`row_stats` on maps, by the Rust core, without the GIL.

    Memory is that of the result. The files must not be shortened meanwhile.

    Raises
    ------
    DataError
        A file cannot be read or ends before its matrix does, and as for :func:`row_stats`.
    """
    pairs = pairs_of(row_map, reference.shape, tuned.shape)
    to = rounding(round_to)
    sides = [(mapped(name, side), side.dtype) for name, side in (("reference", reference), ("tuned", tuned))]
    return _native(sides[0], sides[1], pairs, to, columns=columns)


def _reference(p: Matrix, f: Matrix, pairs: Pairs | None, to: Dtype | None, *, columns: bool) -> RowStats:
    n, width = len(f) if pairs is None else len(pairs), f.shape[1]
    device = device_of(f)
    blocks: list[dict[str, Tensor]] = []
    sums = torch.zeros(2, width, dtype=torch.float64, device=device)
    for start in range(0, max(n, 1), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        reference, delta = deltas_of(p, f, np.stack([rows, rows], 1) if pairs is None else pairs[rows], to)
        size, finite = delta.abs(), delta.isfinite()
        r, e = reference.double(), delta.double()
        block = {
            "delta_squared": (e * e).sum(1),
            "delta_dot": (e * r).sum(1),
            "reference_squared": (r * r).sum(1),
            "delta_abs": e.abs().sum(1),
            "delta_max": size.amax(1),
        }
        whole = finite.all(1)
        block = {name: torch.where(whole, values, torch.nan) for name, values in block.items()}
        # what is not finite outranks any size
        block["delta_argmax"] = torch.where(finite, size, torch.inf).argmax(1)
        block["zeros"] = (delta == 0).sum(1)
        block["non_finite"] = (~finite).sum(1)
        blocks.append(block)
        sums += torch.stack([e[whole].sum(0), (e * e)[whole].sum(0)])
    found = {name: torch.cat([block[name] for block in blocks]).cpu().numpy() for name in blocks[0]}
    if columns:
        found["column_delta"], found["column_delta_squared"] = sums.cpu().numpy()
    return RowStats(width=width, **found)


def _native(
    reference: tuple[Bytes, Dtype],
    tuned: tuple[Bytes, Dtype],
    pairs: Pairs | None,
    to: Dtype | None,
    *,
    columns: bool,
) -> RowStats:
    from asepsis import _native

    found = _native.row_stats(
        reference[0],
        tuned[0],
        reference_dtype=reference[1],
        tuned_dtype=tuned[1],
        pairs=pairs,
        columns=columns,
        round_to=to,
        threads=torch.get_num_threads(),
    )
    return RowStats(width=tuned[0].shape[1] // SIZES[tuned[1]], **found)
