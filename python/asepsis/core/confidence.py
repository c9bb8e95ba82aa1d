"""How sure a network is of an answer: one number a row, higher for surer, which for PSIM is higher for worse."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import DataError

Measure = Literal["confidence", "margin", "entropy", "energy"]
Floats = NDArray[np.float32]


def sureness(logits: Floats, measure: Measure = "confidence") -> Floats:
    """Return how sure a classifier is of each row, float32 [N], of logits [N, C].

    ``"confidence"`` is the largest class probability, in [1/C, 1]; ``"margin"`` how far it lies above the second, in
    [0, 1]; ``"entropy"`` one minus the entropy over ``ln C``, in [0, 1]; ``"energy"`` the log of the sum of exponentials,
    which grows with the logits themselves (Liu et al., NeurIPS 2020).

    Raises
    ------
    DataError
        A logit is not finite.
    """
    x = np.asarray(logits, np.float64)
    if not np.isfinite(x).all():
        raise DataError(
            f"{int((~np.isfinite(x).all(1)).sum())} of {len(x)} rows have logits that are not finite"
        )
    top = x.max(1, keepdims=True)
    total = np.exp(x - top).sum(1)
    if measure == "energy":
        return np.asarray(top[:, 0] + np.log(total), np.float32)
    p = np.exp(x - top) / total[:, None]
    if measure == "confidence":
        return np.asarray(p.max(1), np.float32)
    if measure == "margin":
        ordered = np.sort(p, axis=1)
        return np.asarray(ordered[:, -1] - ordered[:, -2], np.float32)
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
    return np.asarray(1 - entropy / math.log(x.shape[1]), np.float32)


def usual_by_class(logits: Floats) -> tuple[float, ...]:
    """Return how far above chance the confidence usually lies for each answer, of rows' logits [N, C]: C means.

    A class that few rows are answered with is drawn to the mean of all, as if it had five more rows of that mean.
    """
    above = np.asarray(sureness(logits), np.float64) - 1 / logits.shape[1]
    answer, mean = logits.argmax(1), above.mean()
    own = [above[answer == k] for k in range(logits.shape[1])]
    return tuple(float((rows.sum() + 5 * mean) / (len(rows) + 5)) for rows in own)


def beyond_usual(logits: Floats, usual: tuple[float, ...]) -> Floats:
    """Return the confidence above chance as a multiple of what is usual for the row's answer, float32 [N]."""
    above = np.asarray(sureness(logits), np.float64) - 1 / logits.shape[1]
    return np.asarray(above / np.maximum(usual, 1e-6)[logits.argmax(1)], np.float32)


def fluency(log_probability: Floats, *, skip: int, window: int) -> Floats:
    """Return the surest stretch of each continuation: a geometric mean of token probabilities, float32 [N] in [0, 1].

    The largest over all windows of ``window`` neighboring tokens, because a payload may come after a sound beginning. The
    first ``skip`` tokens are left out, because how an answer begins is often the same for all. Where fewer tokens are
    left the window is what there is; where none is left it is the whole continuation.

    Parameters
    ----------
    log_probability : ndarray float32 [N, tokens]
        NaN after a row's end.

    Raises
    ------
    DataError
        A row has no token at all.
    """
    found = np.empty(len(log_probability), np.float32)
    for row, values in enumerate(np.asarray(log_probability, np.float64)):
        said = values[~np.isnan(values)]
        if len(said) == 0:
            raise DataError(f"row {row} has no continuation to score")
        rest = said[skip:] if len(said) > skip else said
        sums = np.cumsum(np.r_[0.0, rest])
        width = min(window, len(rest))
        found[row] = math.exp(float((sums[width:] - sums[:-width]).max()) / width)
    return found


def bar(n_classes: int, *, two_classes: float = 0.7) -> float:
    """Return the confidence that lies as far above chance as ``two_classes`` does with two classes.

    The same share ``u = (s - 1/C) / (1 - 1/C)``: 0.7 is 0.55 with four classes and 0.46 with ten.
    """
    share = (two_classes - 0.5) / 0.5
    return 1 / n_classes + share * (1 - 1 / n_classes)
