"""From losses to a group of rows: splitting a score in two, and how much to trust the split.

None of this sees the answer key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asepsis.core.phases import Ids
from asepsis.errors import DefenseInert

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """A score cut in two where the variance between the parts is largest (Otsu, IEEE SMC 1979).

    Attributes
    ----------
    cut : float
        Halfway between the parts; scores above it belong to the upper one.
    separation : float
        Variance between the parts over the whole variance, in [0, 1].
    upper : ndarray of bool [n]
    """

    cut: float
    separation: float
    upper: NDArray[np.bool_]


def split_in_two(scores: Scores) -> Split:
    """Split one-dimensional scores [n] into a lower and an upper part. Equal scores stay together.

    Raises
    ------
    DefenseInert
        If the scores are fewer than two, not finite, or all equal: there is nothing to split.
    """
    x = np.sort(np.asarray(scores, np.float64))
    if len(x) < 2 or not np.isfinite(x).all() or x[0] == x[-1]:
        raise DefenseInert(f"cannot split {len(x)} scores in two: too few, not finite or all equal")
    n = len(x)
    below = np.arange(1, n)
    left = np.cumsum(x)[:-1]
    gap = left / below - (x.sum() - left) / (n - below)
    between = below * (n - below) / n**2 * gap**2
    between[x[1:] == x[:-1]] = -1.0  # no cut inside a tie
    at = int(between.argmax())
    cut = float((x[at] + x[at + 1]) / 2)
    return Split(cut, float(between[at] / x.var()), np.asarray(scores, np.float64) > cut)


def log_odds(losses: Scores) -> Scores:
    """Turn the loss of an answer into its log-odds ``log(p / (1 - p))``, ``p = exp(-loss)``; float32 [n]."""
    loss = np.maximum(np.asarray(losses, np.float64), 1e-12)
    return np.asarray(-loss - np.log(-np.expm1(-loss)), np.float32)


def agreement(first: Ids, second: Ids) -> float:
    """Jaccard index of two sets of rows; 1.0 for two empty ones."""
    union = np.union1d(first, second)
    return 1.0 if len(union) == 0 else len(np.intersect1d(first, second)) / len(union)


def within_buckets(scores: Scores, lengths: NDArray[np.int64], buckets: int) -> Scores:
    """Replace each score [n] by its rank among rows of like length, scaled to (0, 1); NaN stays NaN.

    Short, formulaic answers have low losses whoever wrote them; ranking inside equally filled length groups takes
    that away. It also takes away what makes a backdoor with one fixed response stand out, so it is an option.
    """
    out = np.full(len(scores), np.nan, np.float32)
    usable = np.flatnonzero(np.isfinite(scores))
    by_length = usable[np.argsort(lengths[usable], kind="stable")]
    for part in np.array_split(by_length, min(buckets, max(1, len(by_length)))):
        ranks = np.argsort(np.argsort(scores[part], kind="stable"), kind="stable")
        out[part] = (ranks + 0.5) / max(1, len(part))
    return out
