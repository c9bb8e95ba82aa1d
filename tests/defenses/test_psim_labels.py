"""Rows whose answers say nothing: drawn, permuted, or moved to other rows."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asepsis.data import Data
from asepsis.defenses._psim_labels import answers_of, meaningless, verbalizers_of
from asepsis.errors import DefenseInert
from asepsis.testing import tiny_pairs, tiny_rows


def test_uniform_labels_are_independent_of_the_rows_own():
    rows = tiny_rows(4000, 0, n_classes=4)
    drawn = meaningless(rows, "uniform_fixed", answers="classes", passes=1, seed=3)
    assert drawn.texts == rows.texts
    table = np.zeros((4, 4))
    np.add.at(table, (rows.labels, drawn.labels), 1)
    assert np.abs(table / 1000 - 0.25).max() < 0.06
    same = meaningless(rows, "uniform_fixed", answers="classes", passes=1, seed=3)
    assert np.array_equal(same.labels, drawn.labels)


def test_labels_drawn_anew_differ_from_pass_to_pass():
    rows = tiny_rows(50, 0)
    many = meaningless(rows, "uniform_per_epoch", answers="classes", passes=4, seed=0)
    assert len(many) == 200 and many.texts == [*rows.texts] * 4
    assert len({tuple(part) for part in many.labels.reshape(4, 50).tolist()}) == 4


def test_permuted_labels_keep_the_balance():
    rows = replace(tiny_rows(100, 0), labels=np.r_[np.zeros(90, np.int64), np.ones(10, np.int64)])
    moved = meaningless(rows, "permute", answers="classes", passes=1, seed=0)
    assert moved.labels.sum() == 10 and not np.array_equal(moved.labels, rows.labels)


def test_no_free_response_stays_where_it_was():
    rows = tiny_pairs(200, 0)
    moved = meaningless(rows, "uniform_fixed", answers="free", passes=1, seed=0)
    assert sorted(moved.responses) == sorted(rows.responses)
    assert not any(a == b for a, b in zip(moved.responses, rows.responses, strict=True))
    lengths = np.array([[len(a), len(b)] for a, b in zip(moved.responses, rows.responses, strict=True)])
    assert np.abs(np.diff(lengths)).max() <= 16, "rows change places with rows of like length"


@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=8), seed=st.integers(0, 99))
def test_no_response_stays_however_often_one_comes(sizes, seed):
    responses = [f"answer {'x' * k}" for k, size in enumerate(sizes) for _ in range(size)]
    rows = Data(task="causal", texts=[f"text {n}" for n in range(len(responses))], responses=responses)
    if 2 * max(sizes) > len(responses):
        with pytest.raises(DefenseInert, match="more than half"):
            meaningless(rows, "uniform_fixed", answers="free", passes=1, seed=seed)
        return
    moved = meaningless(rows, "uniform_fixed", answers="free", passes=1, seed=seed)
    assert sorted(moved.responses) == sorted(responses)
    assert not any(a == b for a, b in zip(moved.responses, responses, strict=True))


def test_half_of_many_rows_with_one_response_change_places_in_time():
    rows = 8000  # which would take half a minute if each looked at all the others
    responses = ["no"] * (rows // 2) + [f"another {n}" for n in range(rows // 2)]
    data = Data(task="causal", texts=[str(n) for n in range(rows)], responses=responses)
    began = time.process_time()
    moved = meaningless(data, "uniform_fixed", answers="free", passes=1, seed=0).responses
    assert not any(a == b for a, b in zip(moved, responses, strict=True)) and sorted(moved) == sorted(
        responses
    )
    assert time.process_time() - began < 5


def test_responses_that_are_all_the_same_cannot_change_places():
    rows = replace(tiny_pairs(20, 0), responses=["no"] * 20)
    with pytest.raises(DefenseInert, match="all responses are the same"):
        meaningless(rows, "uniform_fixed", answers="free", passes=1, seed=0)
    with pytest.raises(DefenseInert, match="1 different responses"):
        verbalizers_of(rows)


def test_few_responses_that_come_often_are_verbalizers():
    rows = replace(tiny_pairs(40, 0), responses=["good", "bad"] * 20)
    assert answers_of(rows, "auto") == "verbalizers" and verbalizers_of(rows) == ["bad", "good"]
    assert answers_of(tiny_pairs(40, 0), "auto") == "free"
    assert answers_of(rows, "free") == "free" and answers_of(tiny_rows(8, 0), "auto") == "classes"
    drawn = meaningless(rows, "uniform_fixed", answers="verbalizers", passes=1, seed=0)
    assert set(drawn.responses) == {"good", "bad"} and drawn.responses != rows.responses
