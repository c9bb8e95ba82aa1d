"""What is overwritten and, above all, what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asepsis.core.purge import purge_dimensions, purge_rows

PAD = torch.tensor([9.0, 9.0])


def moved():
    """Row 1 moved by (3, 0), row 3 by (0, 4) and row 2 by (1.25, 0.5): Frobenius norm sqrt(26.8125) over 4 rows."""
    before = torch.zeros(4, 2)
    return before, torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.25, 0.5], [0.0, 4.0]])


def test_the_sequential_threshold_drifts_as_worked_by_hand():
    before, words = moved()
    done = purge_dimensions(words, before, np.array([1, 2, 3]), PAD, rule="frobenius_over_rows_sequential")
    # first: sqrt(26.8125) / 4 = 1.2945; row 1 becomes (9, 0): sqrt(26.8125 - 9 + 81) / 4 = 2.4851 before row 2, whose
    # 1.25 and 0.5 stay below; row 3's 4 is above the same 2.4851
    assert done.thresholds == pytest.approx((26.8125**0.5 / 4, 98.8125**0.5 / 4))
    assert words.tolist() == [[0, 0], [9, 0], [1.25, 0.5], [0, 9]]
    assert (done.rows, done.values) == (2, 2)


def test_a_threshold_taken_once_does_not_drift():
    before, words = moved()
    words[2, 0] = 1.5  # between the threshold taken once, 1.35, and the drifted one
    once, drifting = words.clone(), words.clone()
    rows = np.array([1, 2, 3])
    fixed = purge_dimensions(once, before, rows, PAD, rule="frobenius_over_rows_once")
    purge_dimensions(drifting, before, rows, PAD, rule="frobenius_over_rows_sequential")
    assert fixed.thresholds[0] == fixed.thresholds[1]
    assert once[2].tolist() == [9, 0.5]
    assert drifting[2].tolist() == [1.5, 0.5]


def test_a_value_that_did_not_move_or_moved_exactly_so_far_is_kept():
    before, words = torch.full((1, 2), 5.0), torch.tensor([[5.0, 7.0]])
    done = purge_dimensions(words, before, np.array([0]), PAD, rule="frobenius_over_rows_once")
    assert done.thresholds == (2.0, 2.0)
    assert words.tolist() == [[5, 7]] and (done.rows, done.values) == (0, 0)


@pytest.mark.parametrize("values", [PAD, torch.stack([PAD, PAD])])
def test_whole_rows_go_and_the_rest_keeps_its_bits(values):
    words = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    before = words.clone()
    words[3, 0] = 9.0
    done = purge_rows(words, np.array([1, 3]), values)
    assert words[[1, 3]].tolist() == [[9, 9], [9, 9]]
    assert torch.equal(words[[0, 2, 4]], before[[0, 2, 4]])
    assert (done.rows, done.values) == (2, 3)


def test_nothing_flagged_is_nothing_done():
    before, words = moved()
    none = np.empty(0, np.int64)
    assert purge_rows(words, none, PAD).rows == 0
    assert purge_dimensions(words, before, none, PAD, rule="frobenius_over_rows_once").thresholds is None
    assert torch.equal(words, moved()[1])
