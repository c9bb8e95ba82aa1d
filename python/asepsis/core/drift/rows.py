"""The rows of one embedding matrix: compared, freed of what all share, scored and judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asepsis.core.drift.adapter import Change
from asepsis.core.drift.judge import Judgment, judge
from asepsis.core.drift.result import TokenDrift, number
from asepsis.core.drift.tensors import compare
from asepsis.core.embeddings import (
    Conditioned,
    Floats,
    Ids,
    Mask,
    Motion,
    condition,
    epur_score,
    motion,
    read_floats,
    without_shared_drift,
)
from asepsis.core.weights.headers import DTYPES, StoredTensor
from asepsis.kernels._matrices import Dtype
from asepsis.kernels._moments import RowStats

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Compared rows, ``[N]`` each.

    Attributes
    ----------
    ids
        Rows of the tuned matrix.
    stats
        As compared, nothing taken off.
    """

    ids: Ids
    stats: RowStats
    motion: Motion
    conditioned: Conditioned
    frequency: Floats | None
    protected: Mask
    judgment: Judgment

    @property
    def scores(self) -> dict[str, Floats]:
        """Every score by name."""
        return {
            "excess": self.judgment.excess,
            "drift": self.motion.drift,
            "z": self.conditioned.z,
            "l2": self.stats.l2,
            "perpendicular": self.stats.perpendicular,
            "relative": self.stats.relative_l2,
            "epur": epur_score(self.motion.drift, self.frequency),
        }

    @property
    def eligible(self) -> Mask:
        """Rows that moved and that are not protected."""
        return self.motion.seen & ~self.protected

    def ranked(self, tokens: list[str | None], top: int) -> list[TokenDrift]:
        """Return the ``top`` rows that stand out most, and every one that is ``high`` or ``elevated``."""
        verdicts = self.judgment.verdicts
        key = np.where(np.isfinite(self.judgment.excess), self.judgment.excess, -np.inf)
        order = np.lexsort((self.ids, -self.motion.drift, -key))
        order = order[self.eligible[order]]
        wanted = [
            at
            for place, at in enumerate(order.tolist())
            if place < top or verdicts[at] in ("high", "elevated")
        ]
        scores = self.scores
        found = []
        for at in wanted:
            named = {name: number(scores[name], at) for name in ("l2", "perpendicular", "relative", "epur")}
            found.append(
                TokenDrift(
                    token=tokens[int(self.ids[at])] or "",
                    id=int(self.ids[at]),
                    drift=float(self.motion.drift[at]),
                    expected=number(self.conditioned.expected, at),
                    z=number(self.conditioned.z, at),
                    excess=number(self.judgment.excess, at),
                    verdict=verdicts[at],
                    scores={**named, "frequency": number(self.frequency, at)},
                )
            )
        return found


def score(
    stats: RowStats, rest: RowStats, dtype: Dtype, ids: Ids, frequency: Floats | None, protected: Mask
) -> Rows:
    """Score and judge compared rows.

    Parameters
    ----------
    stats, rest
        As compared, and with the drift that all rows share taken off.
    dtype
        How the tuned matrix is stored.
    ids
        Rows of the tuned matrix.
    frequency
        ``[N]`` per ten million, None where unknown.
    protected
        ``[N]``.
    """
    moved = motion(rest, dtype)
    conditioned = condition(moved.drift, frequency, moved.seen)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = moved.drift / np.sqrt(rest.reference_squared)
    relative = np.where(moved.drift == 0, 0.0, relative)
    return Rows(
        ids=ids,
        stats=stats,
        motion=moved,
        conditioned=conditioned,
        frequency=frequency,
        protected=protected,
        judgment=judge(moved, conditioned, relative, protected),
    )


def compare_rows(
    reference: StoredTensor, tuned: StoredTensor, pairs: Ids, *, tied: bool
) -> tuple[RowStats, RowStats]:
    """Compare paired rows of two stored matrices; return the sums, and those without a drift that all rows share."""
    stats = compare(reference, tuned, pairs)
    if not tied or not stats.moved.any():
        return stats, stats
    dtype = DTYPES[tuned.dtype]
    to = dtype if dtype != "float32" else None
    return stats, without_shared_drift(reference.matrix(), tuned.matrix(), stats, pairs, round_to=to)


def changed_rows(reference: StoredTensor, change: Change, pairs: Ids) -> RowStats:
    """Return the sums for rows that an adapter changes, ``pairs`` being (row of the base, row with the adapter)."""
    stored = reference.matrix()
    whole = stored if change.whole is None else change.whole.matrix()
    replaced = {} if change.ids is None else {int(row): at for at, row in enumerate(change.ids)}
    values = None if change.values is None else read_floats(change.values.matrix())
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, max(len(pairs), 1), _BLOCK):
        left, right = pairs[start : start + _BLOCK, 0], pairs[start : start + _BLOCK, 1]
        p = read_floats(stored, left).astype(np.float64)
        f = read_floats(whole, right).astype(np.float64)
        delta = f - p
        if change.low_rank is not None:
            delta += change.low_rank.rows(right)
        for at, row in enumerate(right.tolist()):
            if values is not None and row in replaced:
                delta[at] = values[replaced[row]] - p[at]
        parts.append(_sums(p, delta))
    return RowStats(
        width=stored.shape[1], **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )


def _sums(p: Floats, delta: Floats) -> dict[str, np.ndarray]:
    finite = np.isfinite(delta)
    size = np.where(finite, np.abs(delta), np.inf)
    found = {
        "delta_squared": np.einsum("ij,ij->i", delta, delta),
        "delta_dot": np.einsum("ij,ij->i", delta, p),
        "reference_squared": np.einsum("ij,ij->i", p, p),
        "delta_abs": np.abs(delta).sum(1),
        "delta_max": np.abs(delta).max(1, initial=0.0).astype(np.float32),
        "delta_argmax": size.argmax(1),
        "zeros": (delta == 0).sum(1),
        "non_finite": (~finite).sum(1),
    }
    for name in ("delta_squared", "delta_dot", "reference_squared", "delta_abs", "delta_max"):
        found[name] = np.where(finite.all(1), found[name], np.nan).astype(found[name].dtype)
    return found
