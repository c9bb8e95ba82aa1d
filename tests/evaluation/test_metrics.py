from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn

from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.metrics import (
    attack_success_rate,
    auprc,
    auroc,
    auroc_interval,
    clean_accuracy,
    detection_metrics,
    far,
    frr,
    mean_interval,
    precision_at_k,
    recall_at_k,
    roc_curve,
    tpr_at_fpr,
    wilson,
)

# Six rows by eye, most suspicious first: poisoned, clean, poisoned, then a tie of one each, then clean.
SUSPICION = np.array([0.9, 0.8, 0.7, 0.4, 0.4, 0.1])
POISONED = np.array([True, False, True, True, False, False])

# Few distinct values, so that ties are the rule.
both_kinds = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({poisoned for _, poisoned in rows}) == 2
)


def columns(rows):
    return np.array([score for score, _ in rows], np.float32), np.array([flag for _, flag in rows], bool)


# Wilson (1927), as printed in Newcombe (Stat. Med. 1998), table I, method 3: exact to four places.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    made = wilson(successes, n)
    assert made.value == successes / n
    assert made.n == n
    assert made.low == pytest.approx(low, abs=5e-5)
    assert made.high == pytest.approx(high, abs=5e-5)


@given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999)
)
def test_wilson_agrees_with_scipy_and_holds_the_share(counts, confidence):
    made = wilson(*counts, confidence=confidence)
    expected = stats.binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert made.low == pytest.approx(expected.low, abs=1e-9)
    assert made.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= made.low <= made.value <= made.high <= 1


def test_wilson_refuses_no_rows_and_impossible_counts():
    for successes, n in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(DataError, match=f"got {successes} of {n}"):
            wilson(successes, n)
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match="confidence"):
            wilson(1, 2, confidence=confidence)


def test_a_proportion_goes_to_json_as_value_n_low_high():
    content = json.loads(json.dumps(wilson(1, 4).to_dict()))
    assert list(content) == ["value", "n", "low", "high"]
    assert content["value"] == 0.25
    assert content["n"] == 4


def test_clean_accuracy_counts_rows_predicted_as_labeled():
    made = clean_accuracy(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1]))
    assert (made.value, made.n) == (0.75, 4)


def test_clean_accuracy_refuses_shapes_that_would_broadcast():
    for predicted in (np.zeros((3, 1), int), np.zeros(1, int), np.zeros(2, int)):
        with pytest.raises(DataError, match="one prediction per row"):
            clean_accuracy(predicted, np.zeros(3, int))


def test_attack_success_counts_predictions_of_the_target_only():
    made = attack_success_rate(np.array([2, 2, 0, 1, 2]), 2)
    assert (made.value, made.n) == (0.6, 5)
    with pytest.raises(DataError, match="0 of 0"):
        attack_success_rate(np.array([], int), 2)
    with pytest.raises(DataError, match="one prediction per row"):
        attack_success_rate(np.zeros((2, 2), int), 2)


def test_the_table_by_eye():
    # 9 pairs: 0.9 wins 3; 0.7 wins 2; 0.4 wins 1 and ties 1.
    assert auroc(SUSPICION, POISONED) == pytest.approx(6.5 / 9)
    curve = roc_curve(SUSPICION, POISONED)
    assert curve.thresholds.tolist() == [math.inf, 0.9, 0.8, 0.7, 0.4, 0.1]
    assert (curve.fpr * 3).tolist() == [0, 0, 1, 1, 2, 3]
    assert (curve.tpr * 3).tolist() == [0, 1, 1, 2, 3, 3]
    assert tpr_at_fpr(SUSPICION, POISONED) == pytest.approx(1 / 3)
    assert tpr_at_fpr(SUSPICION, POISONED, fpr=1 / 3) == pytest.approx(2 / 3)
    assert tpr_at_fpr(SUSPICION, POISONED, fpr=0.6) == pytest.approx(2 / 3)
    assert auprc(SUSPICION, POISONED) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert [precision_at_k(SUSPICION, POISONED, k) for k in (1, 2, 3, 4, 5, 6)] == pytest.approx(
        [1, 1 / 2, 2 / 3, 2.5 / 4, 3 / 5, 1 / 2]
    )
    assert recall_at_k(SUSPICION, POISONED, 4) == pytest.approx(2.5 / 3)


@given(both_kinds)
def test_ranking_metrics_agree_with_scikit_learn(rows):
    suspicion, poisoned = columns(rows)
    fpr, tpr, thresholds = sklearn.roc_curve(poisoned, suspicion, drop_intermediate=False)
    curve = roc_curve(suspicion, poisoned)
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert auroc(suspicion, poisoned) == pytest.approx(sklearn.roc_auc_score(poisoned, suspicion))
    assert auprc(suspicion, poisoned) == pytest.approx(sklearn.average_precision_score(poisoned, suspicion))


@given(both_kinds, st.floats(0, 1))
def test_tpr_at_fpr_is_the_best_threshold_that_keeps_the_fpr(rows, limit):
    suspicion, poisoned = columns(rows)
    tries = [suspicion >= cut for cut in (*suspicion, math.inf)]
    allowed = [flags[poisoned].mean() for flags in tries if flags[~poisoned].mean() <= limit]
    assert tpr_at_fpr(suspicion, poisoned, fpr=limit) == pytest.approx(max(allowed))


@given(both_kinds, st.data())
def test_no_metric_depends_on_the_order_of_the_rows(rows, data):
    suspicion, poisoned = columns(rows)
    moved = np.array(data.draw(st.permutations(range(len(rows)))))
    k = data.draw(st.integers(1, len(rows)))
    for metric in (auroc, auprc, tpr_at_fpr, lambda s, p: precision_at_k(s, p, k)):
        assert metric(suspicion, poisoned) == pytest.approx(metric(suspicion[moved], poisoned[moved]))


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.data())
def test_precision_at_k_is_the_mean_over_all_orders_of_ties(rows, data):
    suspicion, poisoned = columns(rows)
    k = data.draw(st.integers(1, len(rows)))
    sorted_orders = [
        order
        for order in itertools.permutations(range(len(rows)))
        if all(suspicion[a] >= suspicion[b] for a, b in itertools.pairwise(order))
    ]
    shares = [poisoned[list(order[:k])].mean() for order in sorted_orders]
    assert precision_at_k(suspicion, poisoned, k) == pytest.approx(np.mean(shares))


@given(both_kinds)
def test_more_suspicion_of_the_poisoned_never_lowers_auroc(rows):
    suspicion, poisoned = columns(rows)
    assert auroc(suspicion + 2 * poisoned, poisoned) >= auroc(suspicion, poisoned)
    assert auroc(suspicion + 10 * poisoned, poisoned) == 1.0
    assert auroc(-suspicion, poisoned) == pytest.approx(1 - auroc(suspicion, poisoned))


def test_infinite_suspicion_ranks_at_the_ends():
    suspicion = np.array([math.inf, 1.0, 0.0, -math.inf])
    poisoned = np.array([True, True, False, False])
    assert auroc(suspicion, poisoned) == 1.0
    assert tpr_at_fpr(suspicion, poisoned, fpr=0.0) == 1.0
    assert precision_at_k(suspicion, poisoned, 2) == 1.0


def test_one_kind_of_row_leaves_ranking_undefined():
    for poisoned in (np.ones(3, bool), np.zeros(3, bool)):
        suspicion = np.array([1.0, 2.0, 3.0])
        assert auroc(suspicion, poisoned) is None
        assert roc_curve(suspicion, poisoned) is None
        assert tpr_at_fpr(suspicion, poisoned) is None
    assert auprc(suspicion, np.zeros(3, bool)) is None
    assert auprc(suspicion, np.ones(3, bool)) == 1.0
    assert recall_at_k(suspicion, np.zeros(3, bool), 2) is None
    assert precision_at_k(suspicion, np.zeros(3, bool), 2) == 0.0


@pytest.mark.parametrize(
    "metric",
    [
        auroc,
        roc_curve,
        tpr_at_fpr,
        auprc,
        lambda s, p: precision_at_k(s, p, 1),
        lambda s, p: recall_at_k(s, p, 1),
    ],
)
def test_rows_never_scored_are_not_ranked(metric):
    with pytest.raises(DataError, match="2 of 3 rows have NaN suspicion"):
        metric(np.array([math.nan, 1.0, math.nan]), np.array([True, False, True]))
    with pytest.raises(DataError, match="one score and one answer per row"):
        metric(np.array([1.0, 2.0]), np.array([True, False, True]))
    with pytest.raises(DataError, match="one score and one answer per row"):
        metric(np.array([]), np.array([], bool))
    with pytest.raises(DataError, match="boolean"):
        metric(np.array([1.0, 2.0]), np.array([0, 1]))


def test_cuts_out_of_range_are_refused():
    for k in (0, 7, -1):
        with pytest.raises(DataError, match="k must lie in"):
            precision_at_k(SUSPICION, POISONED, k)
    for fpr in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="fpr"):
            tpr_at_fpr(SUSPICION, POISONED, fpr=fpr)


def test_flags_by_eye():
    flagged = np.array([True, True, False, False, False, False])
    made = detection_metrics(SUSPICION, flagged, POISONED)
    assert made == {"auroc": 6.5 / 9, "tpr": 1 / 3, "fpr": 1 / 3, "precision": 1 / 2}
    assert (far(flagged, POISONED).value, far(flagged, POISONED).n) == (2 / 3, 3)
    assert (frr(flagged, POISONED).value, frr(flagged, POISONED).n) == (1 / 3, 3)


@given(both_kinds, st.data())
def test_flag_metrics_agree_with_the_confusion_matrix(rows, data):
    suspicion, poisoned = columns(rows)
    flagged = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    made = detection_metrics(suspicion, flagged, poisoned)
    tn, fp, fn, tp = sklearn.confusion_matrix(poisoned, flagged, labels=[False, True]).ravel()
    assert made["tpr"] == pytest.approx(tp / (tp + fn))
    assert made["fpr"] == pytest.approx(fp / (fp + tn)) == frr(flagged, poisoned).value
    assert made["precision"] == (pytest.approx(tp / (tp + fp)) if tp + fp else None)
    assert far(flagged, poisoned).value == pytest.approx(fn / (tp + fn))


def test_undefined_flag_metrics_are_none_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = np.zeros(3, bool)
        suspicion = np.arange(3.0)
        assert detection_metrics(suspicion, none, none) == {
            "auroc": None,
            "tpr": None,
            "fpr": 0.0,
            "precision": None,
        }
        assert detection_metrics(suspicion, ~none, ~none) == {
            "auroc": None,
            "tpr": 1.0,
            "fpr": None,
            "precision": 1.0,
        }
        assert far(none, none) is None
        assert frr(none, ~none) is None


def test_row_numbers_are_not_taken_for_flags():
    for call in (far, frr, lambda f, p: detection_metrics(np.arange(3.0), f, p)):
        with pytest.raises(DataError, match="boolean"):
            call(np.array([0, 1, 2]), np.array([True, False, True]))
        with pytest.raises(DataError, match="one flag and one answer"):
            call(np.array([True]), np.array([True, False, True]))


# df 20 is the last of the table, 21 the first of the series.
@pytest.mark.parametrize("n", [2, 3, 5, 10, 11, 12, 20, 21, 22, 23, 31, 100, 1000])
def test_mean_interval_is_the_t_interval_of_scipy(n):
    values = np.random.default_rng(n).normal(0.9, 0.02, n)
    mean, low, high = mean_interval(values.tolist())
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean())
    half = (expected[1] - expected[0]) / 2
    assert (low, high) == pytest.approx(expected, abs=3e-5 * half)


def test_a_single_seed_has_no_interval_and_says_so_in_json():
    made = mean_interval([0.5])
    assert made.mean == 0.5
    assert math.isnan(made.low)
    assert math.isnan(made.high)
    assert json.dumps(made.to_dict(), allow_nan=False) == '{"mean": 0.5, "low": null, "high": null}'


def test_equal_seeds_have_an_interval_of_no_width():
    assert mean_interval([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [0.5, math.inf]])
def test_nothing_and_nan_are_not_averaged(values):
    with pytest.raises(DataError, match="finite numbers"):
        mean_interval(values)


def test_the_interval_of_an_auroc_holds_it_stays_inside_and_does_not_vanish_at_the_ends():
    for scores, poisoned in (
        (np.arange(40.0), np.arange(40) >= 20),
        (-np.arange(40.0), np.arange(40) >= 20),
        (np.arange(40.0) % 7, np.arange(40) >= 30),
    ):
        found = auroc_interval(scores, poisoned)
        assert found is not None
        assert found["value"] == auroc(scores, poisoned)
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert found["high"] - found["low"] > 0.05
    assert auroc_interval(np.ones(3), np.zeros(3, bool)) is None
    assert auroc_interval(np.ones(3), np.ones(3, bool)) is None


def test_the_interval_of_an_auroc_holds_the_true_one_as_often_as_it_says():
    rng = np.random.default_rng(0)
    poisoned = np.arange(120) < 30
    held = 0
    for _ in range(400):
        # poisoned scores are higher by one standard deviation: the true area is Phi(1 / sqrt 2)
        found = auroc_interval(rng.normal(size=120) + poisoned, poisoned)
        assert found is not None
        held += found["low"] <= 0.7602499 <= found["high"]
    assert 0.92 <= held / 400 <= 0.99
