"""ASR, CACC and detection quality in plain numpy. Suspicion is always higher-is-worse.

A number that is not defined for the rows at hand, such as a false-positive rate without clean rows, is None: never 0,
never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import ConfigError, DataError

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

# Two-sided 95 % points of Student's t by degrees of freedom, from 1.
_T95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)


@dataclass(frozen=True)
class Proportion:
    """A share of ``n`` rows with its Wilson interval; value, low and high in [0, 1]."""

    value: float
    n: int
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the four numbers."""
        return asdict(self)


class Mean(NamedTuple):
    """A mean over seeds with its 95 % t-interval; low and high are NaN for a single value."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the three numbers; NaN, which JSON does not know, as None."""
        return {name: None if math.isnan(x) else x for name, x in self._asdict().items()}


class Roc(NamedTuple):
    """The ROC curve, from (0, 0) to (1, 1): flagging all rows with suspicion >= threshold gives that fpr and tpr."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Return a proportion with its score interval (Wilson, JASA 1927), which is sound near 0 and 1 too."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie in (0, 1), got {confidence!r}")
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a proportion needs rows: got {successes} of {n}")
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # In exact arithmetic the interval holds p; in floating point it can miss it by one rounding at 0 and 1.
    return Proportion(p, n, max(0.0, min(p, center - half)), min(1.0, max(p, center + half)))


def clean_accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> Proportion:
    """Return CACC: the share of untouched rows predicted as labeled."""
    guesses, answers = np.asarray(predicted), np.asarray(labels)
    if guesses.shape != answers.shape or guesses.ndim != 1:
        raise DataError(f"one prediction per row: got {guesses.shape} predictions for {answers.shape} labels")
    return wilson(int((guesses == answers).sum()), len(answers))


def attack_success_rate(predicted: NDArray[np.int64], target_label: int) -> Proportion:
    """Return ASR: the share of triggered non-target rows predicted as the target."""
    guesses = np.asarray(predicted)
    if guesses.ndim != 1:
        raise DataError(f"one prediction per row: got predictions of shape {guesses.shape}")
    return wilson(int((guesses == target_label).sum()), len(guesses))


def auroc(suspicion: Floats, is_poisoned: Flags) -> float | None:
    """Return the chance that a poisoned row outranks a clean one, ties half; None unless both kinds are present."""
    scores, poisoned = _aligned(suspicion, is_poisoned)
    positives, negatives = int(poisoned.sum()), int((~poisoned).sum())
    if positives == 0 or negatives == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # average rank within ties
    above = ranks[poisoned].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def auroc_interval(suspicion: Floats, is_poisoned: Flags) -> dict[str, float] | None:
    """Return AUROC as ``value`` with the ``low`` and ``high`` of its 95 % interval; None unless both kinds are present.

    The areas that the one found does not refute: those less than 1.96 of their own standard errors away, by the variance
    of Hanley and McNeil (Radiology 1982). It stays inside [0, 1] and does not shrink to a point at 1.
    """
    found = auroc(suspicion, is_poisoned)
    if found is None:
        return None
    m = int(np.sum(is_poisoned))
    n, z = len(is_poisoned) - m, NormalDist().inv_cdf(0.975)

    def refuted(area: float) -> bool:
        spread = 1 + (m - 1) * (1 - area) / (2 - area) + (n - 1) * area / (1 + area)
        return abs(found - area) > z * math.sqrt(area * (1 - area) * spread / (m * n))

    def end(outside: float) -> float:
        inside = found
        if not refuted(outside):
            return outside
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if refuted(middle) else (middle, outside)
        return inside

    # the ends themselves have no variance and are refuted by anything else
    return {"value": found, "low": end(0.0), "high": end(1.0)}


def roc_curve(suspicion: Floats, is_poisoned: Flags) -> Roc | None:
    """Return a point for flagging nothing (threshold inf) and one per distinct suspicion, falling.

    None unless both kinds of row are present.
    """
    scores, poisoned = _aligned(suspicion, is_poisoned)
    if poisoned.all() or not poisoned.any():
        return None
    thresholds, hits, alarms = _cuts(scores, poisoned)
    return Roc(np.r_[0.0, alarms / alarms[-1]], np.r_[0.0, hits / hits[-1]], np.r_[math.inf, thresholds])


def tpr_at_fpr(suspicion: Floats, is_poisoned: Flags, *, fpr: float = 0.01) -> float | None:
    """Return the largest share of poisoned rows flagged by a threshold that flags at most ``fpr`` of the clean ones.

    None unless both kinds of row are present. There is no interpolation between thresholds.
    """
    if not 0 <= fpr <= 1:
        raise ConfigError(f"fpr must lie in [0, 1], got {fpr!r}")
    curve = roc_curve(suspicion, is_poisoned)
    return None if curve is None else float(curve.tpr[curve.fpr <= fpr].max())


def auprc(suspicion: Floats, is_poisoned: Flags) -> float | None:
    """Return average precision: precision at each threshold, weighted by the recall it adds. None without poison."""
    scores, poisoned = _aligned(suspicion, is_poisoned)
    if not poisoned.any():
        return None
    _, hits, alarms = _cuts(scores, poisoned)
    added = np.diff(hits, prepend=0) / hits[-1]
    return float((added * hits / (hits + alarms)).sum())


def precision_at_k(suspicion: Floats, is_poisoned: Flags, k: int) -> float:
    """Return the share of poisoned rows among the ``k`` most suspicious, averaged over every order of tied rows."""
    return _hits_at_k(suspicion, is_poisoned, k) / k


def recall_at_k(suspicion: Floats, is_poisoned: Flags, k: int) -> float | None:
    """Return the share of the poisoned rows among the ``k`` most suspicious, ties as above. None without poison."""
    hits, poisoned = _hits_at_k(suspicion, is_poisoned, k), int(np.sum(is_poisoned))
    return hits / poisoned if poisoned else None


def far(flagged: Flags, is_poisoned: Flags) -> Proportion | None:
    """Return the false acceptance rate: the share of poisoned rows let through. None without poison."""
    flags, poisoned = _flags(flagged, is_poisoned)
    return wilson(int((~flags & poisoned).sum()), int(poisoned.sum())) if poisoned.any() else None


def frr(flagged: Flags, is_poisoned: Flags) -> Proportion | None:
    """Return the false rejection rate: the share of clean rows thrown out. None without clean rows."""
    flags, poisoned = _flags(flagged, is_poisoned)
    return wilson(int((flags & ~poisoned).sum()), int((~poisoned).sum())) if not poisoned.all() else None


def detection_metrics(suspicion: Floats, flagged: Flags, is_poisoned: Flags) -> dict[str, float | None]:
    """Return AUROC of the suspicion, and TPR, FPR and precision of the flags; None where undefined.

    Precision is undefined when nothing is flagged, the others as in :func:`auroc`, :func:`far` and :func:`frr`.
    """
    flags, poisoned = _flags(flagged, is_poisoned)
    hits = int((flags & poisoned).sum())
    return {
        "auroc": auroc(suspicion, poisoned),
        "tpr": hits / int(poisoned.sum()) if poisoned.any() else None,
        "fpr": int((flags & ~poisoned).sum()) / int((~poisoned).sum()) if not poisoned.all() else None,
        "precision": hits / int(flags.sum()) if flags.any() else None,
    }


def mean_interval(values: Sequence[float]) -> Mean:
    """Return the mean over seeds and its two-sided 95 % t-interval, which may reach beyond the range of the values."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise DataError(f"expected finite numbers to average, one a seed, got {list(values)}")
    mean = float(x.mean())
    if len(x) == 1:
        return Mean(mean, math.nan, math.nan)
    half = _t95(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Mean(mean, mean - half, mean + half)


def _t95(degrees: int) -> float:
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    # Abramowitz & Stegun 26.7.5: relative error below 1e-5 from 21 degrees of freedom on.
    z, n = NormalDist().inv_cdf(0.975), degrees
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def _cuts(scores: Floats, poisoned: Flags) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct scores, falling, and how many poisoned and clean rows lie at or above each."""
    order = np.argsort(scores, kind="stable")[::-1]
    ranked = scores[order]
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    hits = np.cumsum(poisoned[order], dtype=np.int64)[last]
    return ranked[last], hits, last + 1 - hits


def _hits_at_k(suspicion: Floats, is_poisoned: Flags, k: int) -> float:
    scores, poisoned = _aligned(suspicion, is_poisoned)
    if not 1 <= k <= len(scores):
        raise DataError(f"k must lie in [1, {len(scores)}], got {k}")
    cut = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, tied = scores > cut, scores == cut
    # Row order would decide among ties, and poison often stands at the end of a file.
    return float(poisoned[above].sum() + (k - above.sum()) * poisoned[tied].mean())


def _aligned(suspicion: Floats, is_poisoned: Flags) -> tuple[NDArray[np.float64], Flags]:
    scores, poisoned = np.asarray(suspicion, np.float64), np.asarray(is_poisoned)
    if scores.shape != poisoned.shape or scores.ndim != 1 or len(scores) == 0:
        raise DataError(f"one score and one answer per row: got {scores.shape} and {poisoned.shape}")
    if poisoned.dtype != bool:
        raise DataError(f"answers must be boolean, one per row, got {poisoned.dtype}")
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} rows have NaN suspicion; they were never scored"
        )
    return scores, poisoned


def _flags(flagged: Flags, is_poisoned: Flags) -> tuple[Flags, Flags]:
    flags, poisoned = np.asarray(flagged), np.asarray(is_poisoned)
    if flags.shape != poisoned.shape or flags.ndim != 1 or len(flags) == 0:
        raise DataError(f"one flag and one answer per row: got {flags.shape} and {poisoned.shape}")
    if flags.dtype != bool or poisoned.dtype != bool:  # row numbers would pass for flags
        raise DataError(f"flags and answers must be boolean, got {flags.dtype} and {poisoned.dtype}")
    return flags, poisoned
