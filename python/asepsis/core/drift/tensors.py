"""How far every tensor moved, whatever it is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from asepsis.core.drift.result import TensorDrift
from asepsis.core.weights.files import Checkpoint
from asepsis.core.weights.headers import DTYPES, StoredTensor, same_bytes
from asepsis.errors import ModelError
from asepsis.kernels._moments import RowStats
from asepsis.kernels.row_stats import row_stats_files


def compare(reference: StoredTensor, tuned: StoredTensor, pairs: object = None) -> RowStats:
    """Compare two stored tensors as matrices; a reference is rounded to 16 bits where the tuned one was.

    Raises
    ------
    ModelError
        One of them cannot be read as floats.
    """
    dtype = DTYPES.get(tuned.dtype)
    return row_stats_files(
        reference.matrix(),
        tuned.matrix(),
        row_map=pairs,  # type: ignore[arg-type]
        round_to=dtype if dtype != "float32" else None,
    )


def compare_all(
    tuned: Checkpoint, base: Checkpoint, names: Mapping[str, str | None], known: Mapping[str, RowStats]
) -> list[TensorDrift]:
    """Compare every tensor: those of ``tuned`` in name order, then what only ``base`` has.

    Parameters
    ----------
    names
        Tuned name to base name, as of ``aligned_names``.
    known
        Tensors of ``tuned`` that were compared by row already.

    Raises
    ------
    ModelError
        A weight of either is NaN or infinite.
    """
    found = []
    for name, tensor in tuned.tensors.items():
        partner = names[name]
        other = None if partner is None else base.tensors[partner]
        found.append(summed(name, tensor.shape, known[name]) if name in known else _one(tensor, other))
    return found + missing(base, {name for name in names.values() if name is not None})


def missing(base: Checkpoint, names: AbstractSet[str]) -> list[TensorDrift]:
    """Return the tensors of ``base`` that are not among ``names``."""
    left = sorted(base.tensors.keys() - names)
    return [TensorDrift(name=name, status="missing", shape=base.tensors[name].shape) for name in left]


def summed(name: str, shape: tuple[int, ...], stats: RowStats) -> TensorDrift:
    """Add up the rows of a tensor.

    Raises
    ------
    ModelError
        A value is NaN or infinite.
    """
    if broken := int(stats.non_finite.sum()):
        raise ModelError(
            f"{name}: {broken:,} values are NaN or infinite, here or in the base; a model with such weights does not "
            "work and cannot be judged. Download it again"
        )
    return drifted(
        name, shape, math.sqrt(stats.delta_squared.sum()), math.sqrt(stats.reference_squared.sum())
    )


def drifted(name: str, shape: tuple[int, ...], drift: float, norm: float) -> TensorDrift:
    """Return a compared tensor."""
    relative = drift / norm if norm else (0.0 if drift == 0 else None)
    return TensorDrift(name=name, status="compared", shape=shape, drift=drift, relative=relative)


def _one(tensor: StoredTensor, other: StoredTensor | None) -> TensorDrift:
    name, shape = tensor.name, tensor.shape
    alone = other is None or other.shape != shape or other.floating != tensor.floating
    if tensor.floating and tensor.count and (alone or other is None):
        summed(name, shape, compare(tensor, tensor))  # nothing to compare with, but it must be whole
    if other is None or alone:
        return TensorDrift(name=name, status="extra" if other is None else "reshaped", shape=shape)
    if tensor.floating:
        if tensor.count == 0:
            return drifted(name, shape, 0.0, 0.0)
        return summed(name, shape, compare(other, tensor))
    return TensorDrift(name=name, status="same" if same_bytes(tensor, other) else "changed", shape=shape)
