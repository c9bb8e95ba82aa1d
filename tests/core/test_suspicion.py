from __future__ import annotations

import math

import numpy as np
import pytest

from asepsis.core.suspicion import clean_rows_needed, clean_threshold
from asepsis.errors import ConfigError, MissingReference


@pytest.mark.parametrize(
    ("n", "rate", "rank"),
    [
        (99, 0.01, 99),  # ceil(100 * 0.99): the largest of 99
        (199, 0.01, 198),
        (9, 0.1, 9),
        (10, 0.1, 10),  # ceil(11 * 0.9) = ceil(9.9)
        (19, 0.1, 18),
        (4, 0.5, 3),  # ceil(2.5)
    ],
)
def test_the_threshold_is_the_conformal_order_statistic(n, rate, rank):
    clean = np.random.default_rng(0).permutation(np.arange(1, n + 1)).astype(np.float32)
    assert clean_threshold(clean, rate) == rank


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.03, 33)])
def test_too_few_clean_rows_are_refused_with_the_number_needed(rate, needed):
    assert clean_rows_needed(rate) == needed
    clean_threshold(np.zeros(needed, np.float32), rate)
    with pytest.raises(MissingReference, match=rf"at least {needed} clean rows, got {needed - 1}"):
        clean_threshold(np.zeros(needed - 1, np.float32), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_outside_the_open_unit_interval_is_refused(rate):
    with pytest.raises(ConfigError, match="target_fpr"):
        clean_rows_needed(rate)


@pytest.mark.parametrize(("n", "rate"), [(20, 0.1), (50, 0.05), (99, 0.01)])
def test_fresh_clean_rows_are_flagged_at_most_at_the_wanted_rate(n, rate):
    rng = np.random.default_rng(7)
    draws = 4000
    # A heavy tail: the guarantee must not lean on normality.
    calibration = rng.standard_cauchy((draws, n)).astype(np.float32)
    fresh = rng.standard_cauchy((draws, 50)).astype(np.float32)
    thresholds = np.array([clean_threshold(row, rate) for row in calibration])
    flagged = float((fresh > thresholds[:, None]).mean())
    exact = 1 - math.ceil((n + 1) * (1 - rate) - 1e-9) / (n + 1)
    assert flagged == pytest.approx(exact, abs=0.006)
    assert exact <= rate + 1e-12


def test_ties_at_the_threshold_are_not_flagged():
    clean = np.zeros(99, np.float32)
    assert not (clean > clean_threshold(clean, 0.01)).any()
