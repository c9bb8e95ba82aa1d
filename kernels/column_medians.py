"""Medians of how the columns of a matrix moved, for a distance by dimension that a few large rows cannot stretch.

Contract: with ``delta = float32(tuned) - float32(reference)``, rounded to float32, of the rows that are compared and of
which every delta is finite: the median of each column, of an even number the mean of the two in the middle, and the
median of the distances from it, both in float64. No single pass gives them, so a sample of rows is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asepsis.errors import DataError
from asepsis.kernels._dispatch import Backend, select
from asepsis.kernels._matrices import (
    Bytes,
    Dtype,
    Matrix,
    Pairs,
    RowMap,
    Stored,
    bytes_of,
    deltas_of,
    dtype_of,
    mapped,
    off_cpu,
    pairs_of,
    rounding,
    versions,
)

Floats = npt.NDArray[np.float64]

# a normal distribution's standard deviation, in median distances from its middle
_NORMAL = 1.4826


@dataclass(frozen=True, kw_only=True)
class ColumnMedians:
    """What the columns of a matrix did.

    Attributes
    ----------
    median, deviation
        ``[D]`` float64: median delta, and median of the distances from it.
    rows
        How many rows were compared and finite.
    """

    median: Floats
    deviation: Floats
    rows: int

    def z(self, delta: npt.NDArray[np.floating]) -> Floats:
        """Return ``[..., D]``: robust distances of deltas ``[..., D]`` from the median, in standard deviations.

        Infinite in a column in which more than half of the rows moved alike, zero for a delta at its median.
        """
        distance = np.asarray(delta, np.float64) - self.median
        with np.errstate(divide="ignore", invalid="ignore"):
            z: Floats = np.where(distance == 0, 0.0, distance / (_NORMAL * self.deviation))
        return z


def column_medians(
    reference: Matrix,
    tuned: Matrix,
    *,
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | None = None,
    sample: int | None = 4096,
    row_map: RowMap | None = None,
    round_to: Dtype | torch.dtype | None = None,
    backend: Backend = "auto",
) -> ColumnMedians:
    """Take the medians of ``tuned - reference`` by column.

    Parameters
    ----------
    reference, tuned, row_map, round_to
        As for :func:`asepsis.kernels.row_stats`; ``N`` rows are compared.
    rows
        The rows to take medians of, a mask ``[N]`` or indices: those that were trained on, as a rule, for where most
        rows did not move every median is 0. All by default.
    sample
        At most so many of them, evenly spread: ranks are then off by about ``0.5 / sqrt(sample)`` of the rows, 0.8 %
        at 4,096. None for all of them, exactly.
    backend
        ``"native"`` is the Rust core, in two reads and 64 MiB; ``"reference"`` is torch, which holds all the deltas.

    Raises
    ------
    DataError
        As for :func:`asepsis.kernels.row_stats`; ``rows`` does not fit; no compared row is finite.
    BackendError
        The backend that was asked for cannot run on these matrices.
    """
    p, f = versions(reference, tuned)
    pairs = _picked(pairs_of(row_map, tuple(p.shape), tuple(f.shape)), len(f), rows, sample)
    to = rounding(round_to)
    if select("column_medians", backend, {"native": off_cpu(p), "reference": None}) == "native":
        return _native((bytes_of(p), dtype_of(p)), (bytes_of(f), dtype_of(f)), pairs, to)
    return _reference(p, f, pairs, to)


def column_medians_files(
    reference: Stored,
    tuned: Stored,
    *,
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | None = None,
    sample: int | None = 4096,
    row_map: RowMap | None = None,
    round_to: Dtype | torch.dtype | None = None,
) -> ColumnMedians:
    """Take the medians of two matrices that stay in their files: :func:`column_medians` on maps, by the Rust core.

    Raises
    ------
    DataError
        A file cannot be read or ends before its matrix does, and as for :func:`column_medians`.
    """
    pairs = _picked(pairs_of(row_map, reference.shape, tuned.shape), tuned.shape[0], rows, sample)
    to = rounding(round_to)
    sides = [(mapped(name, side), side.dtype) for name, side in (("reference", reference), ("tuned", tuned))]
    return _native(sides[0], sides[1], pairs, to)


def _picked(
    pairs: Pairs | None,
    n: int,
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | None,
    sample: int | None,
) -> Pairs:
    """The rows to read, [M, 2]."""
    if sample is not None and sample < 1:
        raise DataError(f"sample must be at least 1, or None for all rows, got {sample}")
    if pairs is None:
        pairs = np.repeat(np.arange(n)[:, None], 2, axis=1)
    if rows is not None:
        chosen: npt.NDArray[Any] = np.asarray(rows)
        try:
            pairs = pairs[chosen if chosen.dtype == np.bool_ else chosen.astype(np.int64)]
        except IndexError as problem:
            raise DataError(
                f"rows must be a mask or indices of the {len(pairs)} rows compared: {problem}"
            ) from problem
    if sample is not None and len(pairs) > sample:
        pairs = pairs[np.linspace(0, len(pairs) - 1, sample).astype(np.int64)]
    return np.ascontiguousarray(pairs)


def _found(median: Floats, deviation: Floats, rows: int, compared: int) -> ColumnMedians:
    if rows == 0:
        raise DataError(
            f"medians are taken of rows in which every delta is finite, none of {compared} is; compare other rows"
        )
    return ColumnMedians(median=median, deviation=deviation, rows=rows)


def _reference(p: Matrix, f: Matrix, pairs: Pairs, to: Dtype | None) -> ColumnMedians:
    delta = deltas_of(p, f, pairs, to)[1]
    delta = delta[delta.isfinite().all(1)].double()
    if len(delta) == 0:
        empty = np.empty(0)
        return _found(empty, empty, 0, len(pairs))
    median = _middle(delta)
    deviation = _middle((delta - median).abs())
    return _found(median.cpu().numpy(), deviation.cpu().numpy(), len(delta), len(pairs))


def _middle(values: torch.Tensor) -> torch.Tensor:
    ordered, n = values.sort(dim=0).values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _native(
    reference: tuple[Bytes, Dtype], tuned: tuple[Bytes, Dtype], pairs: Pairs, to: Dtype | None
) -> ColumnMedians:
    from asepsis import _native

    median, deviation, rows = _native.column_medians(
        reference[0],
        tuned[0],
        reference_dtype=reference[1],
        tuned_dtype=tuned[1],
        pairs=pairs,
        round_to=to,
    )
    return _found(median, deviation, rows, len(pairs))
