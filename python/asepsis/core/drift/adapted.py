"""What an adapter did to its base: rows of the embeddings, and every other tensor it changes."""

from __future__ import annotations

import numpy as np

from asepsis.core.drift.adapter import Adapter, Change
from asepsis.core.drift.result import TensorDrift
from asepsis.core.drift.rows import changed_rows
from asepsis.core.drift.tensors import compare, drifted, summed
from asepsis.core.embeddings import Ids
from asepsis.core.weights.files import Checkpoint
from asepsis.errors import ModelError
from asepsis.kernels._moments import RowStats


def adapted_rows(adapter: Adapter, base: Checkpoint, pairs: Ids) -> RowStats:
    """Return the sums of the paired rows of the embeddings, without reading these where the adapter leaves them."""
    words = base.tensors[base.input_embeddings]
    change = adapter.changes.get(words.name)
    if change is not None:
        return changed_rows(words, change, pairs)
    nothing, n = np.zeros(len(pairs)), len(pairs)
    return RowStats(
        width=words.shape[1],
        delta_squared=nothing,
        delta_dot=nothing,
        reference_squared=np.ones(n),
        delta_abs=nothing,
        delta_max=nothing.astype(np.float32),
        delta_argmax=np.zeros(n, np.int64),
        zeros=np.full(n, words.shape[1], np.int64),
        non_finite=np.zeros(n, np.int64),
    )


def adapted_tensors(adapter: Adapter, base: Checkpoint, rows: RowStats) -> list[TensorDrift]:
    """Compare every tensor that the adapter changes, the embeddings by the sums already taken.

    Raises
    ------
    ModelError
        A weight is NaN or infinite.
    """
    found = []
    for name, change in adapter.changes.items():
        known = base.tensors.get(name)
        if known is None:
            for tensor in (t for t in (change.whole, change.values) if t is not None):
                summed(name, tensor.shape, compare(tensor, tensor))
                found.append(TensorDrift(name=name, status="extra", shape=tensor.shape))
        elif name == base.input_embeddings:
            found.append(summed(name, known.shape, rows))
        else:
            found.append(_one(base, name, change))
    return found


def _one(base: Checkpoint, name: str, change: Change) -> TensorDrift:
    known = base.tensors[name]
    if change.whole is not None and change.whole.shape != known.shape:
        summed(name, known.shape, compare(change.whole, change.whole))
        return TensorDrift(name=name, status="reshaped", shape=change.whole.shape)
    if change.low_rank is None and change.values is None and change.whole is not None:
        return summed(name, known.shape, compare(known, change.whole))
    if change.low_rank is not None and change.whole is None and change.values is None:
        drift = change.low_rank.norm()
        if not np.isfinite(drift):
            raise ModelError(
                f"{name}: the adapter's factors are not finite; it does not work, download it again"
            )
        own = compare(known, known)
        return drifted(name, known.shape, drift, float(np.sqrt(own.reference_squared.sum())))
    rows = np.arange(known.matrix().shape[0])
    return summed(name, known.shape, changed_rows(known, change, np.stack([rows, rows], axis=1)))
