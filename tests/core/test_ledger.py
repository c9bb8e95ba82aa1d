"""The loss ledger's Python face."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asepsis import _native
from asepsis.core.ledger import Coverage, LossLedger, Reducer
from asepsis.errors import LedgerError

N = 7
cells = st.one_of(
    st.none(), st.sampled_from([0.0, 1.0, float("nan"), float("inf")]), st.floats(-1, 20, width=32)
)
columns = st.lists(
    st.lists(cells, min_size=N, max_size=N).filter(lambda c: any(x is not None for x in c)),
    min_size=1,
    max_size=4,
)


def filled(*table: list[float | None]) -> LossLedger:
    """A ledger of these columns; None is missing."""
    ledger = LossLedger(len(table[0]))
    for column in table:
        seen = [i for i, loss in enumerate(column) if loss is not None]
        ledger.observe(np.array(seen), np.array([column[i] for i in seen], np.float32))
        ledger.end_epoch()
    return ledger


def threshold(by: str) -> float | None:
    return 0.5 if by == "first_below" else None


@given(columns)
def test_mean_last_and_drop_are_numpys(table):
    ledger = filled(*table)
    for row in range(N):
        seen = np.array([c[row] for c in table if c[row] is not None], np.float64)
        with np.errstate(invalid="ignore"):
            wanted = (
                {"mean": seen.mean(), "last": seen[-1], "drop": seen[-1] - seen[0]}
                if len(seen)
                else dict.fromkeys(("mean", "last", "drop"), np.nan)
            )
        for by, value in wanted.items():
            np.testing.assert_allclose(ledger.scores(by)[row], value, rtol=1e-6, atol=1e-6)


@given(columns)
def test_columns_show_missing_as_nan_and_the_mask_tells_why(table):
    ledger = filled(*table)
    for i, column in enumerate(table):
        assert ledger.observed(i).tolist() == [loss is not None for loss in column]
        np.testing.assert_array_equal(
            ledger.column(i), np.array([np.nan if x is None else x for x in column], np.float32)
        )


@pytest.mark.parametrize("by", typing.get_args(Reducer))
def test_a_row_that_is_low_throughout_is_the_most_suspicious(by):
    start = [3.0] * 6
    ledger = filled(start, [2.0, 1.9, 2.1, 0.1, 2.2, 2.3], [1.5, 1.4, 1.6, 0.01, 1.7, 1.8])
    assert ledger.bottom(k=1, by=by, threshold=threshold(by)).tolist() == [3]


@pytest.mark.parametrize("by", typing.get_args(Reducer))
def test_a_row_never_observed_has_no_score_and_is_never_isolated(by):
    ledger = filled([None, 1.0, 2.0, None], [None, 0.3, 1.0, 0.4])
    scores = ledger.scores(by, threshold=threshold(by))
    assert scores.dtype == np.float32
    assert np.isnan(scores).tolist() == [True, False, False, False]
    assert 0 not in ledger.bottom(k=3, by=by, threshold=threshold(by))
    with pytest.raises(LedgerError, match="4 values were asked for, only 3"):
        ledger.bottom(k=4, by=by, threshold=threshold(by))


def test_the_area_of_a_row_seen_in_fewer_epochs_compares():
    ledger = filled([1.0, 4.0, None], [None, 2.0, 3.0], [3.0, 2.0, None])
    np.testing.assert_allclose(ledger.scores("auc_loss"), [2.0, 2.5, 3.0])


def test_seep_is_minus_the_mean_inverse_error():
    ledger = filled([0.5, 1e-9, -1.0], [2.0, 1e-9, 0.0])
    p = np.exp(-np.array([0.5, 2.0]))
    np.testing.assert_allclose(ledger.scores("seep"), [-(1 / (1 - p)).mean(), -1e6, -1e6], rtol=1e-5)


def test_first_below_counts_epochs_and_ends_at_their_number():
    ledger = filled([0.6, 0.4, 0.5, None], [0.3, 0.9, 0.5, 0.2])
    assert ledger.scores("first_below", threshold=0.5).tolist() == [1, 0, 2, 1]


def test_the_share_is_rounded_down_and_never_none():
    ledger = filled(list(np.linspace(5, 1, 250)))
    assert ledger.bottom(0.01).tolist() == [249, 248]
    assert ledger.bottom(0.001).tolist() == [249]
    assert ledger.bottom(1.0).tolist() == list(range(249, -1, -1))


@pytest.mark.parametrize("as_labels", [np.array, torch.tensor, lambda x: np.array(x, np.uint64)])
def test_with_labels_the_share_is_of_every_class(as_labels):
    ledger = filled([5.0, 4.0, 3.0, 2.0, 0.1, 0.2])
    assert ledger.bottom(0.5, labels=as_labels([0, 0, 0, 0, 10**12, 10**12])).tolist() == [3, 2, 4]


def test_ties_go_to_the_lower_position():
    assert filled([0.0] * 500).bottom(k=5).tolist() == [0, 1, 2, 3, 4]


def test_agreement_is_the_overlap_of_consecutive_columns():
    ledger = filled([0.0, 1, 2, 3], [0.0, 1, 2, 3], [3.0, 1, 2, 0])
    np.testing.assert_allclose(ledger.agreement(2), [1, 1 / 3])
    with pytest.raises(LedgerError, match="1 are closed, 2 are needed"):
        filled([1.0]).agreement(1)


@pytest.mark.parametrize(
    ("positions", "losses"),
    [
        (np.array([2, 0]), np.array([1.5, 0.5], np.float32)),
        (np.array([2, 0], np.int32), np.array([1.5, 0.5])),
        (np.array([2, 9, 0])[::2], np.array([1.5, 9, 0.5], np.float16)[::2]),
        (torch.tensor([2, 0]), torch.tensor([1.5, 0.5])),
        (torch.tensor([2, 0], dtype=torch.uint8), torch.tensor([1.5, 0.5], dtype=torch.bfloat16)),
        (torch.tensor([2, 9, 0])[::2], torch.tensor([1.5, 0.5], requires_grad=True) * 1),
    ],
)
def test_losses_are_taken_in_any_dtype_of_their_kind(positions, losses):
    ledger = LossLedger(3)
    ledger.observe(positions, losses)
    assert ledger.end_epoch() == Coverage(observed=2, nan=0, inf=0, n=3)
    np.testing.assert_array_equal(ledger.column(0), np.array([0.5, np.nan, 1.5], np.float32))


def test_native_dtypes_are_read_in_place(monkeypatch):
    seen = []

    class Spy:
        def __init__(self, *args, **options):
            pass

        def observe(self, *arrays):
            seen.extend(arrays)

    monkeypatch.setattr(_native, "Ledger", Spy)
    for positions, losses in [
        (np.arange(3), np.zeros(3, np.float32)),
        (torch.arange(3), torch.zeros(3)),
    ]:
        LossLedger(3).observe(positions, losses)
        assert np.shares_memory(seen.pop(), np.asarray(losses))
        assert np.shares_memory(seen.pop(), np.asarray(positions))


@pytest.mark.parametrize(
    ("positions", "losses", "message"),
    [
        (np.array([0, 3]), np.zeros(2), "position 3 .entry 1 of the batch. is outside 0..3"),
        (np.array([-1]), np.zeros(1), "position -1"),
        (np.array([2**63], np.uint64), np.zeros(1), "position -"),
        (np.array([0, 1]), np.zeros(1), "losses has length 1, 2 was wanted"),
        (np.array([0.0]), np.zeros(1), "positions must hold integer values, got float64"),
        (np.array([True]), np.zeros(1), "positions must hold integer values, got bool"),
        (np.array([0]), np.zeros(1, int), "losses must hold floating values, got int64"),
        (np.array([[0]]), np.zeros(1), "positions must be a contiguous 1-D"),
        ([0], np.zeros(1), "positions must be a numpy array or a torch tensor, got list"),
        (np.array([0]), torch.zeros(1, device="meta"), "losses must be in CPU memory"),
    ],
)
def test_a_batch_that_cannot_be_recorded_leaves_no_trace(positions, losses, message):
    ledger = LossLedger(3)
    with pytest.raises(LedgerError, match=message):
        ledger.observe(positions, losses)
    with pytest.raises(LedgerError, match="no sample was observed"):
        ledger.end_epoch()


def test_nothing_is_answered_before_anything_was_recorded():
    ledger = LossLedger(3)
    for ask in (
        ledger.scores,
        lambda: ledger.bottom(0.5),
        lambda: ledger.column(0),
        lambda: ledger.agreement(1),
    ):
        with pytest.raises(LedgerError):
            ask()
    ledger.observe(np.array([1]), np.ones(1))
    with pytest.raises(LedgerError, match=r"1 samples observed in the open one\); call end_epoch"):
        ledger.scores()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either ratio, a float in .0, 1., or k"),
        ({"ratio": 0.1, "k": 1}, "got ratio=0.1 and k=1"),
        ({"ratio": 1}, "got ratio=1 and k=None"),
        ({"ratio": 0.0}, "got ratio=0.0"),
        ({"ratio": float("nan")}, "got ratio=nan"),
        ({"k": 0}, "got ratio=None and k=0"),
        ({"k": 1, "labels": np.zeros(3, int)}, "labels need a ratio"),
        ({"ratio": 0.5, "labels": np.array([0, -1, 0])}, "labels must be classes from 0, got -1"),
        ({"ratio": 0.5, "labels": np.zeros(2, int)}, "labels has length 2, 3 was wanted"),
        ({"k": 1, "by": "median"}, "by must be one of last"),
        ({"k": 1, "by": "first_below"}, "threshold must be a number for first_below"),
        ({"k": 1, "threshold": 0.5}, "only first_below takes one"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(options, message):
    with pytest.raises(LedgerError, match=message):
        filled([1.0, 2.0, 3.0]).bottom(**options)


def test_coverage_reports_what_was_not_a_number():
    ledger = LossLedger(5)
    ledger.observe(np.arange(4), np.array([np.nan, np.inf, -np.inf, 1.0]))
    coverage = ledger.end_epoch()
    assert dataclasses.asdict(coverage) == {"observed": 4, "nan": 1, "inf": 2, "n": 5}
