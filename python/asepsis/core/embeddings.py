"""Scores of how rows of an embedding matrix moved, from the sums of one pass. What a score means is decided elsewhere.

Arrays are ``[V]`` by token id. Frequencies are expected counts in ten million tokens; see
:class:`asepsis.core.weights.Frequencies`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from asepsis.errors import ConfigError
from asepsis.kernels._matrices import SIZES, Bytes, Dtype, Stored, mapped
from asepsis.kernels._moments import RowStats

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]

#: Where Zhang et al. stop dividing by the logarithm, as we recall it; the unit of the count is our choice.
EPUR_FLOOR = 20.0

# quantiles of the expected frequency, over rows that moved, that bins of comparable tokens end at
_QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_FEWEST = 50
# steps between neighboring values, relative to the lower end of their binade
_STEPS: dict[Dtype, float] = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}
# of a row that decay alone moved, what is at right angles is rounding; training moves rows nearly at right angles
_PARALLEL = 0.5
_CANCELED = 4e-3
_BLOCK = 1024
_SAMPLE = 4096


def noise_floor(stats: RowStats, dtype: Dtype) -> Floats:
    """Return ``[V]``: the norm of a delta that rounding alone may leave, with values stored as ``dtype``.

    It is that of one rounding, ``sqrt(sum ulp² / 12)``.
    """
    # over a binade the step is constant and the value is not: 0.72 of the step at its lower end on average
    floor: Floats = np.sqrt(stats.reference_squared / 12) * _STEPS[dtype] * 0.72
    return floor


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How far rows moved once what they all share is taken off.

    Attributes
    ----------
    drift
        ``[V]``: norm of ``tuned - gamma * reference``.
    gamma
        What weight decay left of rows that nothing else moved; 1 where fewer than 50 such rows tell.
    floor
        ``[V]``: drift that rounding may have made.
    """

    drift: Floats
    gamma: float
    floor: Floats

    @property
    def seen(self) -> Mask:
        """``[V]``: rows that something moved, beyond rounding and decay."""
        with np.errstate(invalid="ignore"):
            return self.drift > self.floor


def motion(stats: RowStats, dtype: Dtype) -> Motion:
    """Take weight decay off the norms, ``dtype`` being that of the tuned matrix.

    Notes
    -----
    Rows that only shrank are those whose delta points against the reference. Each of their steps was rounded, in 32
    bits to about as much as it shrank them, so eight times what the common factor leaves of them is the floor.
    """
    floor = noise_floor(stats, dtype)
    l2, squared = stats.l2, stats.reference_squared
    with np.errstate(invalid="ignore"):
        parallel = (stats.delta_dot <= 0) & (stats.perpendicular < _PARALLEL * l2)
        still = ((l2 <= floor) | parallel) & (squared > 0)
    if int(still.sum()) < _FEWEST:
        return Motion(drift=l2, gamma=1.0, floor=floor)
    gamma = stats.decay(still)
    if gamma == 1.0:
        return Motion(drift=l2, gamma=1.0, floor=floor)
    drift = stats.decay_free(gamma)
    # trained rows that shrank by more than they were trained look still, so the least of what is left is taken
    rounding = float(np.quantile(drift[still] / np.sqrt(squared[still]), 0.1))
    # and what is left is a difference, of sums that end in float32
    least = max(8 * rounding, _CANCELED * (1 - gamma))
    return Motion(drift=drift, gamma=gamma, floor=np.maximum(floor, least * np.sqrt(squared)))


def epur_score(l2: Floats, per_ten_million: Floats | None, *, floor: float = EPUR_FLOOR) -> Floats:
    """Return E-PUR's score, ``l2 / ln(max(f, floor))``: ``l2 / ln floor`` for all where no frequency is known.

    The formula is Zhang et al. (2022) as we recall it; the unit of ``f`` is ours.
    """
    expected = np.full(len(l2), floor) if per_ten_million is None else per_ten_million
    score: Floats = l2 / np.log(np.maximum(expected, floor))
    return score


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """What tokens of like frequency did, and how far each is from it.

    Attributes
    ----------
    z
        ``[V]``: ``(ln l2 - median) / (1.4826 MAD)`` within the token's bin; NaN for rows that are not seen.
    expected
        ``[V]``: the bin's median of ``l2``; NaN where nothing is seen.
    bin
        ``[V]`` int64.
    """

    z: Floats
    expected: Floats
    bin: Ids


def condition(l2: Floats, per_ten_million: Floats | None, seen: Mask) -> Conditioned:
    """Compare each row with the rows of tokens as frequent as its own.

    Parameters
    ----------
    l2
        Norms of deltas.
    per_ten_million
        Expected frequencies; None puts all rows in one bin.
    seen
        Rows that moved beyond rounding: medians are over these.

    Notes
    -----
    Bins of ``log1p(f)`` end at the quantiles .5, .7, .8, .9, .95 and .99 of the seen rows, and are merged from below
    until each has at least 50 seen rows.
    """
    seen = seen & np.isfinite(l2) & (l2 > 0)
    f = np.zeros(len(l2)) if per_ten_million is None else np.log1p(per_ten_million)
    edges = _edges(f[seen])
    bins: Ids = np.searchsorted(edges, f, side="right").astype(np.int64)
    z, expected = np.full(len(l2), np.nan), np.full(len(l2), np.nan)
    for at in range(len(edges) + 1):
        here = bins == at
        if not (here & seen).any():
            continue
        x = np.log(l2[here & seen])
        median = float(np.median(x))
        spread = 1.4826 * float(np.median(np.abs(x - median)))
        expected[here] = np.exp(median)
        # rows that all moved alike have no spread to measure in; any step away from them is beyond measure
        with np.errstate(divide="ignore", invalid="ignore"):
            z[here & seen] = np.where(x == median, 0.0, (x - median) / spread)
    return Conditioned(z=z, expected=expected, bin=bins)


def conditioned_z(l2: Floats, per_ten_million: Floats | None, seen: Mask) -> Floats:
    """Return :attr:`Conditioned.z` of :func:`condition`."""
    return condition(l2, per_ten_million, seen).z


def top_k(score: Floats, k: int, eligible: Mask) -> Ids:
    """Return the ``k`` ids of the highest scores, ties by id, NaN last; never one that is not eligible.

    Raises
    ------
    ConfigError
        ``k`` is negative.
    """
    if k < 0:
        raise ConfigError(f"k must be at least 0, got {k}")
    ids = np.flatnonzero(eligible)
    order = np.argsort(-score[ids], kind="stable")  # puts NaN last
    picked: Ids = ids[order[:k]].astype(np.int64)
    return picked


def without_shared_drift(
    reference: Stored, tuned: Stored, stats: RowStats, pairs: Ids | None, *, round_to: Dtype | None = None
) -> RowStats:
    """Take the drift that all rows share off the sums: with tied embeddings the softmax moves every row, every step.

    ``delta_squared`` and ``delta_dot`` become those of ``delta - mean``, the mean being that of 4,096 rows spread over
    the vocabulary; the other sums stay. A row within four standard errors of the mean has no drift of its own. Reads
    both matrices once more, in blocks.
    """
    n = len(stats)
    if n == 0:
        return stats
    sample = np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))
    total, count, squared = np.zeros(tuned.shape[1]), 0, 0.0
    for _, delta, _ in _blocks(reference, tuned, pairs, sample, round_to):
        whole = np.isfinite(delta).all(1)
        total += delta[whole].sum(0, dtype=np.float64)
        squared += float(np.einsum("ij,ij->", delta[whole], delta[whole], dtype=np.float64))
        count += int(whole.sum())
    if count == 0:
        return stats
    mean = (total / count).astype(np.float32)
    length = float(mean.astype(np.float64) @ mean)
    delta_squared, delta_dot = stats.delta_squared.copy(), stats.delta_dot.copy()
    for rows, delta, p in _blocks(reference, tuned, pairs, np.arange(n), round_to):
        # summed after the subtraction: the shared part may be all but the last digits of delta
        rest = delta - mean
        delta_squared[rows] = np.einsum("ij,ij->i", rest, rest, dtype=np.float64)
        delta_dot[rows] = np.einsum("ij,ij->i", rest, p, dtype=np.float64)
    if length == 0:
        return stats
    error = max(squared / count - length, 0.0) / count  # of the mean, squared
    alike = delta_squared <= 16 * error
    delta_squared[alike] = delta_dot[alike] = 0.0
    bad = stats.non_finite > 0
    delta_squared[bad] = delta_dot[bad] = np.nan
    return replace(stats, delta_squared=delta_squared, delta_dot=delta_dot)


def _blocks(
    reference: Stored, tuned: Stored, pairs: Ids | None, rows: Ids, round_to: Dtype | None
) -> Iterator[tuple[Ids, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    left, right = mapped("reference", reference), mapped("tuned", tuned)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        here, there = (block, block) if pairs is None else (pairs[block, 0], pairs[block, 1])
        p = _floats(left[here], reference.dtype)
        if round_to is not None:
            p = _rounded(p, round_to)
        yield block, _floats(right[there], tuned.dtype) - p, p


def read_floats(stored: Stored, rows: Ids | slice = slice(None)) -> npt.NDArray[np.float32]:
    """Return rows of a matrix in a file as float32."""
    return _floats(mapped("matrix", stored)[rows], stored.dtype)


def _floats(values: Bytes, dtype: Dtype) -> npt.NDArray[np.float32]:
    values = np.ascontiguousarray(values)
    if dtype == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.view(np.float32 if SIZES[dtype] == 4 else np.float16).astype(np.float32)


def _rounded(values: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[np.float32]:
    import torch

    return torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()


def _edges(f: Floats) -> Floats:
    """Bin edges from the quantiles of ``f``, merged from below until each bin holds enough of it."""
    wanted = np.unique(np.quantile(f, _QUANTILES)) if len(f) else np.empty(0)
    edges: list[float] = []
    ordered = np.sort(f)
    below = 0
    for edge in wanted.tolist():
        at = int(np.searchsorted(ordered, edge, side="left"))
        if at - below >= _FEWEST and len(f) - at >= _FEWEST:
            edges.append(edge)
            below = at
    return np.array(edges)
