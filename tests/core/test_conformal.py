from __future__ import annotations

import json
import math

import numpy as np
import pytest

from asepsis.core.conformal import Threshold, beta_quantile, calibrate, exceeds, measured, needed_rows
from asepsis.errors import ConfigError, DataError, MissingReference


@pytest.mark.parametrize(
    ("n", "rate", "rank"),
    [
        (99, 0.01, 99),  # ceil(100 * 0.99): the largest of 99
        (199, 0.01, 198),
        (9, 0.1, 9),
        (10, 0.1, 10),  # ceil(11 * 0.9) = ceil(9.9)
        (19, 0.1, 18),
        (4, 0.5, 3),  # ceil(2.5)
        (1, 0.9, 1),  # one clean row: above it, whatever rate above a half is wanted
    ],
)
def test_the_threshold_is_the_conformal_order_statistic(n, rate, rank):
    clean = np.random.default_rng(0).permutation(np.arange(1, n + 1)).astype(np.float32)
    assert calibrate(clean, rate).value == rank


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.03, 33)])
def test_too_few_clean_rows_are_refused_with_the_number_needed(rate, needed):
    assert needed_rows(rate) == needed
    calibrate(np.zeros(needed, np.float32), rate)
    with pytest.raises(MissingReference, match=rf"at least {needed} clean rows, got {needed - 1}"):
        calibrate(np.zeros(needed - 1, np.float32), rate)


def test_more_certainty_needs_more_rows():
    assert needed_rows(0.01, confidence=0.95) == 299  # 1 - 0.99^299 >= 0.95
    calibrate(np.zeros(299, np.float32), 0.01, confidence=0.95)
    with pytest.raises(MissingReference, match=r"held with probability 0\.95 needs at least 299"):
        calibrate(np.zeros(298, np.float32), 0.01, confidence=0.95)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_outside_the_open_unit_interval_is_refused(rate):
    with pytest.raises(ConfigError, match="target_fpr"):
        needed_rows(rate)
    with pytest.raises(ConfigError, match="confidence"):
        needed_rows(0.1, confidence=rate)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(DataError, match="1 of 20 clean scores are not finite"):
        calibrate(np.r_[np.zeros(19), bad].astype(np.float32), 0.1)


@pytest.mark.parametrize(("n", "rate"), [(20, 0.1), (50, 0.05), (99, 0.01)])
def test_fresh_clean_rows_are_flagged_at_most_at_the_wanted_rate(n, rate):
    rng = np.random.default_rng(7)
    draws = 2000
    # A heavy tail: the guarantee must not lean on normality.
    calibration = rng.standard_cauchy((draws, n)).astype(np.float32)
    fresh = rng.standard_cauchy((draws, 100)).astype(np.float32)
    found = [calibrate(row, rate) for row in calibration]
    flagged = float((fresh > np.array([t.value for t in found])[:, None]).mean())
    exact = 1 - math.ceil((n + 1) * (1 - rate) - 1e-9) / (n + 1)
    assert flagged == pytest.approx(exact, abs=0.006)
    assert exact == pytest.approx(found[0].expected_fpr) and exact <= rate + 1e-12


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_over_200_calibrations_the_rate_is_kept_as_often_as_promised(confidence):
    rng = np.random.default_rng(3)
    clean = rng.random((200, 400)).astype(
        np.float32
    )  # uniform: the realized rate of a threshold is 1 - value
    found = [calibrate(row, 0.05, confidence=confidence) for row in clean]
    realized = 1 - np.array([t.value for t in found])
    promised = found[0].chance
    # three standard deviations of 200 draws
    assert (realized <= 0.05).mean() == pytest.approx(
        promised, abs=3 * math.sqrt(promised * (1 - promised) / 200)
    )
    inside = ((realized >= found[0].low) & (realized <= found[0].high)).mean()
    assert inside == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / 200))
    assert promised >= (confidence or 0.5) and realized.mean() == pytest.approx(
        found[0].expected_fpr, abs=0.003
    )


def test_a_confidence_never_lowers_the_threshold():
    clean = np.random.default_rng(0).random(500).astype(np.float32)
    values = [calibrate(clean, 0.05, confidence=c).value for c in (None, 0.6, 0.9, 0.99)]
    assert values == sorted(values) and values[0] < values[-1]


def test_ties_at_the_threshold_are_not_flagged():
    clean = np.zeros(99, np.float32)
    assert not calibrate(clean, 0.01).flags(clean).any()


def test_a_clean_score_of_32_bits_is_not_above_itself_after_json():
    scores = np.float32([0.1, 0.2, 0.7, 0.3])
    found = Threshold(**json.loads(json.dumps(calibrate(scores, 0.2).to_dict())))
    assert found.flags(scores).tolist() == [False] * 4 and found.flags(np.float32([0.7000001])).all()


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 99), (2, 198), (50, 951), (300, 1), (1000, 9001)])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.975])
def test_beta_quantiles_are_those_of_scipy(p, a, b):
    stats = pytest.importorskip("scipy.stats")
    assert beta_quantile(p, a, b) == pytest.approx(float(stats.beta.ppf(p, a, b)), rel=1e-8)


def test_a_given_threshold_has_the_share_it_flags_and_its_interval():
    found = measured(0.7, np.float32([0.1, 0.7, 0.8, 0.9, *[0.2] * 16]))
    assert (found.value, found.target_fpr, found.n, found.expected_fpr) == (0.7, None, 20, 0.1)
    assert found.low == pytest.approx(0.012349, abs=1e-5) and found.high == pytest.approx(0.316983, abs=1e-5)
    assert (
        measured(0.7, np.zeros(10, np.float32)).low == 0 and measured(-1, np.zeros(10, np.float32)).high == 1
    )
    with pytest.raises(MissingReference, match="there are none"):
        measured(0.7, np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("n", "rate", "rows"), [(99, 0.01, 1_000), (436, 0.05, 10_000), (2_000, 0.01, 300), (99, None, 1_000)]
)
def test_clean_rows_are_findings_one_time_in_a_thousand_whatever_rows_set_the_threshold(n, rate, rows):
    rng = np.random.default_rng(11)
    draws, false = 2_000, 0
    for clean in rng.random((draws, n)).astype(np.float32):  # uniform: a threshold realizes 1 - value
        found = measured(0.99, clean) if rate is None else calibrate(clean, rate)
        false += exceeds(int(rng.binomial(rows, 1 - found.value)), rows, found)
    assert false <= 8, "two are expected of 2,000; of plain three standard deviations it would be hundreds"


@pytest.mark.parametrize(("n", "share"), [(99, 0.08), (436, 0.04), (2_000, 0.03)])
def test_poison_is_found_and_by_more_clean_rows_in_smaller_shares(n, share):
    found = calibrate(np.random.default_rng(0).random(n).astype(np.float32), 0.01)
    assert exceeds(round(1_000 * share), 1_000, found)
    assert not exceeds(10, 1_000, found) and not exceeds(0, 1_000, found)


def test_the_tail_is_that_of_the_beta_binomial_and_of_fisher():
    stats = pytest.importorskip("scipy.stats")
    cut = calibrate(np.arange(200, dtype=np.float32), 0.05)  # the tenth clean score from above
    given = measured(0.5, np.float32([0.0] * 196 + [1.0] * 4))
    for flagged in range(1, 120):
        tail = stats.betabinom.sf(flagged - 1, 400, 10, 191)
        assert exceeds(flagged, 400, cut) == (tail < 1e-3)
        table = [[flagged, 400 - flagged], [4, 196]]
        exact = stats.fisher_exact(table, alternative="greater").pvalue
        assert exceeds(flagged, 400, given) == (exact < 1e-3)


def test_a_measured_share_of_none_is_not_taken_for_certain():
    never, always = measured(0.7, np.zeros(60, np.float32)), measured(-1, np.zeros(60, np.float32))
    assert not exceeds(5, 1_000, never) and exceeds(200, 1_000, never)
    assert not exceeds(1_000, 1_000, always)
