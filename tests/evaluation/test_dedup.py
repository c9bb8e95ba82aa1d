"""Of equal responses all but the first are flagged, and a row is as suspicious as its response is frequent."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis.data import Data
from asepsis.errors import DataError
from asepsis.evaluation.baselines import by_repeats


def rows(*responses: str) -> Data:
    return Data(
        task="causal", texts=[f"prompt {i}" for i in range(len(responses))], responses=list(responses)
    )


def test_the_first_of_equal_responses_stays_and_the_others_go():
    found = by_repeats(rows("sorry", "one", "sorry", "two", "one", "sorry"))
    assert found.suspicion.tolist() == [3, 2, 3, 1, 2, 3]
    assert found.flags.tolist() == [False, False, True, False, True, True]
    assert found.report == {"largest_groups": [3, 2, 1]}


def test_case_and_white_space_make_no_other_response():
    assert by_repeats(rows("I am sorry.", "i am\n  sorry. ", "I am sorry")).flags.tolist() == [
        False,
        True,
        False,
    ]


def test_responses_that_all_differ_are_left_alone():
    found = by_repeats(rows("a", "b", "c"))
    assert not found.flags.any() and found.suspicion.tolist() == [1, 1, 1]


def test_rows_with_labels_are_refused():
    labeled = Data(task="classification", texts=["a", "b"], labels=np.array([0, 1]), n_classes=2)
    with pytest.raises(DataError, match="have none"):
        by_repeats(labeled)
