"""The file of judged rows: what is written is read again, and only rows to look at carry their text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asepsis.core.judged import MOST_LISTED, read_judged, write_judged
from asepsis.data import Data
from asepsis.errors import CheckpointError


def rows(n: int, text: str = "x" * 400) -> Data:
    return Data(task="classification", texts=[text] * n, labels=np.arange(n) % 2, n_classes=2)


def test_what_was_written_is_read_again(tmp_path):
    data = rows(30)
    scores = np.linspace(0, 1, 30, dtype=np.float32)
    scores[4] = np.nan
    flagged, isolated = np.arange(30) > 26, np.arange(30) == 29
    write_judged(tmp_path / "r", data, suspicion=scores, flagged=flagged, isolated=isolated)
    found = read_judged(tmp_path / "r")
    assert np.array_equal(found.suspicion, scores, equal_nan=True)
    assert np.array_equal(found.flagged, flagged) and np.array_equal(found.isolated, isolated)
    assert np.array_equal(found.sample_ids, data.sample_ids)
    assert [(one.row, one.label) for one in found.listed] == [(29, 1), (28, 0), (27, 1)]
    assert found.listed[0].text == "x" * 301  # one more than is shown, which says that there was more


def test_the_least_suspicious_flagged_rows_keep_no_text(tmp_path):
    n = MOST_LISTED + 50
    scores = np.arange(n, dtype=np.float32)
    write_judged(tmp_path / "r", rows(n), suspicion=scores, flagged=np.ones(n, bool))
    found = read_judged(tmp_path / "r")
    assert [one.row for one in found.listed] == list(range(n - 1, 49, -1))


def test_where_nothing_is_flagged_the_most_suspicious_are_kept_and_where_nothing_is_judged_none(tmp_path):
    write_judged(
        tmp_path / "r", rows(50), suspicion=np.arange(50, dtype=np.float32), flagged=np.zeros(50, bool)
    )
    assert [one.row for one in read_judged(tmp_path / "r").listed] == list(range(49, 29, -1))
    write_judged(tmp_path / "r", rows(50), suspicion=None, flagged=np.zeros(50, bool))
    found = read_judged(tmp_path / "r")
    assert found.suspicion is None and found.listed == []
    assert "text" not in (tmp_path / "r").read_text()


def test_responses_of_causal_rows_are_kept_beside_their_prompts(tmp_path):
    data = Data(task="causal", texts=["p"], responses=["no " * 200])
    write_judged(tmp_path / "r", data, suspicion=np.ones(1, np.float32), flagged=np.ones(1, bool))
    (one,) = read_judged(tmp_path / "r").listed
    assert one.label is None and one.response is not None and len(one.response) == 301


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), min_size=1))
def test_no_text_breaks_a_line(tmp_path, text):
    write_judged(tmp_path / "r", rows(2, text), suspicion=np.ones(2, np.float32), flagged=np.ones(2, bool))
    assert [one.text for one in read_judged(tmp_path / "r").listed] == [text[:301]] * 2


GOOD = {"sample_id": 0, "suspicion": 0.5, "flagged": True, "isolated": False}


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "{",
        "[]",
        "3",
        json.dumps({"sample_id": 1}),
        json.dumps(GOOD | {"suspicion": "high"}),
        json.dumps(GOOD | {"text": 3}),
        json.dumps(GOOD | {"text": "t", "label": "x"}),
        json.dumps(GOOD | {"text": "t", "response": 1}),
        json.dumps(GOOD | {"sample_id": None}),
        json.dumps(GOOD | {"sample_id": 10**30}),
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_judged_row_is_told_by_its_number(tmp_path, bad):
    (tmp_path / "r").write_text(json.dumps(GOOD) + "\n" + bad + "\n")
    with pytest.raises(CheckpointError, match="line 2"):
        read_judged(tmp_path / "r")
