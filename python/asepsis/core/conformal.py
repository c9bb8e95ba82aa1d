"""Thresholds on suspicion from clean rows: a wanted false-positive rate, valid for finitely many of them.

Split-conformal calibration (Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005): the threshold is
an order statistic of clean scores. With ``m`` of ``n`` clean scores at or above it, a further clean row lies above it
with probability at most ``m / (n + 1)``, whatever the distribution; the rate that one threshold realizes is random
through the rows it came from, and follows Beta(m, n + 1 - m) where scores have no ties, less where they have.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import ConfigError, DataError, MissingReference

_EPSILON = 1e-9  # 100 * 0.01 is not 1 in floating point
_LEVEL = 0.95  # of the interval of the realized rate
_CHANCE = 1e-3  # of calling clean rows findings; about that of three standard deviations


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A cut on suspicion: a row is flagged when its score is strictly above ``value``.

    Attributes
    ----------
    value : float
    target_fpr : float or None
        Wanted share of clean rows flagged, in (0, 1); None for a threshold that was given and only measured.
    n : int
        Clean rows it was calibrated or measured on.
    expected_fpr : float
        Share of clean rows flagged, on average over draws of the ``n`` rows; at most ``target_fpr``. Of a given threshold
        the share of the ``n`` rows.
    low, high : float
        95 % interval of the share that this one threshold realizes. With ties the true ends lie lower.
    chance : float or None
        Probability that the realized share is ``target_fpr`` or less.
    """

    value: float
    target_fpr: float | None
    n: int
    expected_fpr: float
    low: float
    high: float
    chance: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready; ``Threshold(**...)`` takes it back."""
        return asdict(self)

    def flags(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which scores [N] are above the value."""
        return np.asarray(scores > np.float32(self.value))


def needed_rows(target_fpr: float, *, confidence: float | None = None) -> int:
    """Return how many clean rows a threshold needs at least.

    That is ``ceil(1 / fpr) - 1``, or with a confidence ``c`` the ``n`` from which ``1 - (1 - fpr)^n >= c``.
    """
    _check(target_fpr, confidence)
    least = math.ceil(1 / target_fpr - _EPSILON) - 1
    if confidence is not None:
        least = max(least, math.ceil(math.log1p(-confidence) / math.log1p(-target_fpr) - _EPSILON))
    return least


def calibrate(
    clean_scores: NDArray[np.float32], target_fpr: float, *, confidence: float | None = None
) -> Threshold:
    """Return the lowest threshold that flags clean rows at the wanted rate.

    Parameters
    ----------
    clean_scores : ndarray float32 [n]
        Of rows drawn like those to come, on which nothing about the score was fitted.
    target_fpr : float
        In (0, 1).
    confidence : float, optional
        Without one the rate holds on average over draws of the clean rows, and a single threshold realizes more about
        as often as not. With one, in (0, 1), a single threshold realizes ``target_fpr`` or less with that probability.

    Raises
    ------
    MissingReference
        The rows are too few; the message says how many are needed.
    DataError
        A score is not finite.
    """
    scores = np.asarray(clean_scores, np.float32)
    n, needed = len(scores), needed_rows(target_fpr, confidence=confidence)
    if n < needed:
        sure = "" if confidence is None else f" held with probability {confidence:g}"
        raise MissingReference(
            f"a false-positive rate of {target_fpr:g}{sure} needs at least {needed} clean rows, got {n}; give more "
            "rows or a larger rate"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {n} clean scores are not finite")
    above = min(n, math.floor((n + 1) * target_fpr + _EPSILON))
    if confidence is not None:
        tail = _tails(n, target_fpr)  # of m = 1..n
        above = min(above, int((tail >= confidence - 1e-12).sum()))
    side = (1 - _LEVEL) / 2
    return Threshold(
        value=float(np.sort(scores)[n - above]),
        target_fpr=float(target_fpr),
        n=n,
        expected_fpr=above / (n + 1),
        low=beta_quantile(side, above, n + 1 - above),
        high=beta_quantile(1 - side, above, n + 1 - above),
        chance=float(_tails(n, target_fpr)[above - 1]),
    )


def measured(value: float, clean_scores: NDArray[np.float32]) -> Threshold:
    """Return a given threshold with the share of clean scores it flags and that share's interval (Clopper, Pearson)."""
    scores = np.asarray(clean_scores, np.float32)
    n, above = len(scores), int((scores > np.float32(value)).sum())
    if n == 0:
        raise MissingReference("a threshold is measured on clean rows, and there are none")
    side = (1 - _LEVEL) / 2
    return Threshold(
        value=float(value),
        target_fpr=None,
        n=n,
        expected_fpr=above / n,
        low=beta_quantile(side, above, n + 1 - above) if above else 0.0,
        high=beta_quantile(1 - side, above + 1, n - above) if above < n else 1.0,
        chance=None,
    )


def exceeds(flagged: int, n: int, threshold: Threshold) -> bool:
    """Whether more of ``n`` rows are flagged than clean rows would be: by chance one time in a thousand at most.

    The chance is that of the rows judged and that of the rows the threshold comes from. With ``k`` of these ``m`` above it,
    the number of ``n`` clean rows above it follows the beta-binomial of Beta(k + 1, m - k), exactly so for a calibrated
    threshold without ties; for a given one the tail is the p-value of Fisher's exact test of ``flagged`` against ``k``.
    """
    if threshold.target_fpr is None:
        above = round(threshold.expected_fpr * threshold.n)
    else:
        above = max(
            0, round(threshold.expected_fpr * (threshold.n + 1)) - 1
        )  # the cut is a clean score itself
    if flagged == 0 or above >= threshold.n:
        return False
    j = np.arange(n, dtype=np.float64)
    left = n - j
    # ratios of neighboring probabilities: no factorial is needed, the sum sets the scale
    ratios = left * (above + 1 + j) / ((j + 1) * (left - 1 + threshold.n - above))
    logs = np.concatenate(([0.0], np.cumsum(np.log(ratios))))
    terms = np.exp(logs - logs.max())
    return bool(terms[flagged:].sum() < _CHANCE * terms.sum())


@functools.lru_cache(maxsize=256)
def beta_quantile(p: float, a: int, b: int) -> float:
    """Return the ``p``-quantile of Beta(a, b) for whole ``a, b >= 1``, by bisection of a binomial sum.

    ``P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a)``.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _tails(a + b - 1, middle)[a - 1] < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tails(n: int, x: float) -> NDArray[np.float64]:
    """Return ``P(Binomial(n, x) >= m)`` for ``m = 1..n``, float64 [n]."""
    if x <= 0 or x >= 1:
        return np.full(n, float(x >= 1))
    j = np.arange(n + 1)
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))  # log j!
    terms = np.exp(logs[n] - logs - logs[::-1] + j * math.log(x) + (n - j) * math.log1p(-x))
    return np.asarray(np.minimum(np.cumsum(terms[::-1])[::-1], 1.0)[1:])


def _check(target_fpr: float, confidence: float | None) -> None:
    if not 0 < target_fpr < 1:
        raise ConfigError(f"target_fpr must lie in (0, 1), got {target_fpr!r}")
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie in (0, 1), got {confidence!r}")
