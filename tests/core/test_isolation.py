from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asepsis.core.isolation import agreement, log_odds, split_in_two, within_buckets
from asepsis.errors import DefenseInert

scores_in_eighths = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=2, max_size=30)


def separability(x: np.ndarray, cut: float) -> float:
    """Between-group variance over the whole variance, as Otsu defines it."""
    upper = x > cut
    share = upper.mean()
    return share * (1 - share) * (x[upper].mean() - x[~upper].mean()) ** 2 / x.var()


@given(scores_in_eighths)
def test_no_other_cut_separates_better(values):
    x = np.array(values, np.float32)
    distinct = np.unique(x).astype(np.float64)
    assume(len(distinct) > 1)
    split = split_in_two(x)
    best = max(separability(x.astype(np.float64), (a + b) / 2) for a, b in itertools.pairwise(distinct))
    assert split.separation == pytest.approx(best, rel=1e-9)
    assert separability(x.astype(np.float64), split.cut) == pytest.approx(best, rel=1e-9)
    assert np.array_equal(split.upper, x > split.cut)


@given(scores_in_eighths)
def test_equal_scores_stay_together_and_both_parts_hold_rows(values):
    x = np.array(values, np.float32)
    assume(len(np.unique(x)) > 1)
    split = split_in_two(x)
    assert 0 < split.upper.sum() < len(x)
    assert not set(x[split.upper].tolist()) & set(x[~split.upper].tolist())
    assert 0 <= split.separation <= 1 + 1e-12


def test_two_neighboring_floats_are_still_told_apart():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    assert split_in_two(np.array([low, low, high], np.float32)).upper.tolist() == [False, False, True]


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [0.0, math.nan, 1.0], [0.0, math.inf]])
def test_scores_that_cannot_be_split_are_refused(values):
    with pytest.raises(DefenseInert, match="cannot split"):
        split_in_two(np.array(values, np.float32))


def test_one_lump_is_told_from_two():
    rng = np.random.default_rng(0)
    one = rng.normal(size=20_000).astype(np.float32)
    two = np.r_[rng.normal(size=900), 8 + rng.normal(size=100)].astype(np.float32)
    assert split_in_two(one).separation == pytest.approx(2 / math.pi, abs=0.01)
    split = split_in_two(np.r_[two])
    assert split.separation > 0.84
    assert split.upper.tolist() == [False] * 900 + [True] * 100
    tight = np.r_[rng.normal(size=500), 10 + rng.normal(size=500)].astype(np.float32)
    assert split_in_two(tight).separation > 0.9


def test_log_odds_by_hand():
    losses = np.array([math.log(2), -math.log(0.9), -math.log(0.1)], np.float32)
    assert log_odds(losses) == pytest.approx([0.0, math.log(9), -math.log(9)], abs=1e-5)


def test_log_odds_of_certainty_is_finite_and_order_is_kept():
    odds = log_odds(np.array([0.0, 1e-10, 1e-3, 1.0, 50.0], np.float32))
    assert np.isfinite(odds).all()
    assert (np.diff(odds) < 0).all()


def test_agreement_is_the_jaccard_index():
    assert agreement(np.array([1, 2, 3]), np.array([2, 3, 4, 5])) == 2 / 5
    assert agreement(np.array([1]), np.array([2])) == 0.0
    assert agreement(np.array([], np.int64), np.array([], np.int64)) == 1.0


def test_ranks_inside_buckets_take_length_away():
    lengths = np.array([1, 1, 1, 9, 9, 9])
    scores = np.array([0.1, 0.3, 0.2, 7.0, 5.0, 6.0], np.float32)
    ranks = within_buckets(scores, lengths, 2)
    assert ranks == pytest.approx([1 / 6, 5 / 6, 0.5, 5 / 6, 1 / 6, 0.5])


def test_a_row_without_a_score_keeps_none_and_takes_no_place():
    scores = np.array([math.nan, 2.0, 1.0], np.float32)
    ranks = within_buckets(scores, np.array([0, 5, 5]), 1)
    assert np.isnan(ranks[0])
    assert ranks[1:].tolist() == [0.75, 0.25]


def test_more_buckets_than_rows_are_no_error():
    ranks = within_buckets(np.array([3.0, 1.0], np.float32), np.array([1, 2]), 10)
    assert ranks.tolist() == [0.5, 0.5]
