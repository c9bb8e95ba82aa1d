"""ASR, CACC and detection quality in plain numpy. Suspicion is always higher-is-worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import DataError

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

# Two-sided 95 % points of Student's t by degrees of freedom, 1 to 10; beyond that 1.96 plus the first correction.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Proportion:
    """A share of ``n`` rows with its 95 % Wilson interval; all in [0, 1]."""

    value: float
    n: int
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the four numbers."""
        return asdict(self)


def wilson(successes: int, n: int) -> Proportion:
    """Return a proportion with its 95 % interval (Wilson, JASA 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a proportion needs rows: got {successes} of {n}")
    z, p = 1.959963984540054, successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Proportion(p, n, max(0.0, center - half), min(1.0, center + half))


def clean_accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> Proportion:
    """Return CACC: the share of untouched rows predicted as labeled."""
    if len(predicted) != len(labels):
        raise DataError(f"got {len(predicted)} predictions for {len(labels)} rows")
    return wilson(int((predicted == labels).sum()), len(labels))


def attack_success_rate(predicted: NDArray[np.int64], target_label: int) -> Proportion:
    """Return ASR: the share of triggered non-target rows predicted as the target."""
    return wilson(int((predicted == target_label).sum()), len(predicted))


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


def tpr_at_fpr(suspicion: Floats, is_poisoned: Flags, *, fpr: float = 0.01) -> float | None:
    """Return the largest share of poisoned rows flagged by a cut that flags at most ``fpr`` of the clean ones."""
    scores, poisoned = _aligned(suspicion, is_poisoned)
    if poisoned.all() or not poisoned.any():
        return None
    clean = np.sort(scores[~poisoned])[::-1]
    cut = clean[math.floor(fpr * len(clean))]  # strictly above it lie at most fpr of the clean rows
    return float((scores[poisoned] > cut).mean())


def precision_at_k(suspicion: Floats, is_poisoned: Flags, k: int) -> float:
    """Return the share of poisoned rows among the ``k`` most suspicious; ties by row."""
    scores, poisoned = _aligned(suspicion, is_poisoned)
    if not 1 <= k <= len(scores):
        raise DataError(f"k must lie in [1, {len(scores)}], got {k}")
    return float(poisoned[np.argsort(-scores, kind="stable")[:k]].mean())


def detection_metrics(suspicion: Floats, flagged: Flags, is_poisoned: Flags) -> dict[str, float | None]:
    """Return AUROC of the scores, and TPR, FPR and precision of the flags; None where undefined."""
    _, poisoned = _aligned(suspicion, is_poisoned)
    hits = int((flagged & poisoned).sum())
    return {
        "auroc": auroc(suspicion, is_poisoned),
        "tpr": hits / int(poisoned.sum()) if poisoned.any() else None,
        "fpr": int((flagged & ~poisoned).sum()) / int((~poisoned).sum()) if not poisoned.all() else None,
        "precision": hits / int(flagged.sum()) if flagged.any() else None,
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, low and high: the 95 % t-interval over seeds; low and high are NaN for a single value."""
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        raise DataError("no values to average")
    mean = float(x.mean())
    if len(x) == 1:
        return mean, math.nan, math.nan
    degrees = len(x) - 1
    t = _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.4 / degrees
    half = t * float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean, mean - half, mean + half


def _aligned(suspicion: Floats, is_poisoned: Flags) -> tuple[Floats, Flags]:
    scores, poisoned = np.asarray(suspicion), np.asarray(is_poisoned, bool)
    if scores.shape != poisoned.shape or scores.ndim != 1 or len(scores) == 0:
        raise DataError(f"one score and one answer per row: got {scores.shape} and {poisoned.shape}")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} rows have NaN suspicion")
    return scores, poisoned
