"""From losses to a group of rows: splitting a score in two, and how much to trust the split.

None of this sees the answer key. A backdoor shows as a *group*: rows of one class that were learned together, that
teach a model to recognize each other, and that stand apart from their class. Each of the three can be measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asepsis.core.phases import Ids
from asepsis.errors import DefenseInert

Scores = NDArray[np.float32]

# Otsu's separability of a Gaussian is 2/pi = 0.64 and of a uniform density 0.75: a split above this is two groups.
SEPARATED = 0.80


@dataclass(frozen=True)
class Split:
    """A score cut in two where the variance between the parts is largest (Otsu, IEEE SMC 1979).

    Attributes
    ----------
    cut : float
        Scores at or above it belong to the upper part.
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


def lowest_in_class(scores: Scores, labels: NDArray[np.int64], target: int, count: int) -> NDArray[np.int64]:
    """Return the positions of the ``count`` rows of class ``target`` with the lowest scores, ties by position."""
    members = np.flatnonzero((labels == target) & np.isfinite(scores))
    return members[np.argsort(scores[members], kind="stable")[:count]]


def log_odds(losses: Scores) -> Scores:
    """Turn the loss of an answer into its log-odds ``log(p / (1 - p))``, ``p = exp(-loss)``; float32 [n]."""
    loss = np.maximum(np.asarray(losses, np.float64), 1e-12)
    return (-loss - np.log(-np.expm1(-loss))).astype(np.float32)


def agreement(first: Ids, second: Ids) -> float:
    """Jaccard index of two sets of rows; 1.0 for two empty ones."""
    union = np.union1d(first, second)
    return 1.0 if len(union) == 0 else len(np.intersect1d(first, second)) / len(union)
