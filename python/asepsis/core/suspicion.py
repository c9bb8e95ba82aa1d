"""Thresholds on suspicion from clean rows: a wanted false-positive rate, valid for finitely many of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import ConfigError, MissingReference


def clean_rows_needed(target_fpr: float) -> int:
    """Return how many clean rows a threshold for ``target_fpr`` needs at least: ``ceil(1 / fpr) - 1``."""
    if not 0 < target_fpr < 1:
        raise ConfigError(f"target_fpr must lie in (0, 1), got {target_fpr!r}")
    return math.ceil(1 / target_fpr - 1e-9) - 1


def clean_threshold(clean: NDArray[np.float32], target_fpr: float) -> float:
    """Return the cut above which a clean row falls with probability at most ``target_fpr``.

    The split-conformal quantile: with ``n`` exchangeable clean scores the ``ceil((n + 1)(1 - fpr))``-th smallest, and
    a row is flagged when its suspicion is strictly above it. The guarantee holds on average over draws of the clean
    rows, for any distribution.

    Raises
    ------
    MissingReference
        If the clean rows are too few for the rate; the message says how many are needed.
    """
    n, needed = len(clean), clean_rows_needed(target_fpr)
    if n < needed:
        raise MissingReference(
            f"a false-positive rate of {target_fpr:g} needs at least {needed} clean rows, got {n}; "
            "give more rows or a larger rate"
        )
    rank = math.ceil((n + 1) * (1 - target_fpr) - 1e-9)
    return float(np.sort(clean)[min(rank, n) - 1])
