from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asepsis.errors import DataError
from asepsis.evaluation import PoisonKey


def key(*answers: int, ids: list[int] | None = None) -> PoisonKey:
    return PoisonKey(np.array(range(len(answers)) if ids is None else ids), np.array(answers, bool))


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "key.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_key_file_holds_one_row_and_answer_a_line(tmp_path):
    key(0, 1, 0).save(tmp_path / "key.jsonl")
    lines = (tmp_path / "key.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"row": 0, "poisoned": 0},
        {"row": 1, "poisoned": 1},
        {"row": 2, "poisoned": 0},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["key.jsonl"]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    key(1, 0, 1, ids=[70, 3, 2**62]).save(tmp_path / "key.jsonl")
    loaded = PoisonKey.load(tmp_path / "key.jsonl")
    assert loaded.sample_ids.tolist() == [70, 3, 2**62]
    assert loaded.is_poisoned.tolist() == [True, False, True]
    assert loaded.sample_ids.dtype == np.int64
    assert loaded.is_poisoned.dtype == bool


def test_answers_follow_the_ids_asked_for_not_the_order_of_the_key():
    asked = key(1, 0, 0, 1, ids=[9, 2, 5, 7]).for_ids(np.array([7, 2, 9, 7]))
    assert asked.tolist() == [True, False, True, True]


@pytest.mark.parametrize("unknown", [-1, 3, 10])
def test_a_row_the_key_does_not_know_is_refused_by_number(unknown):
    with pytest.raises(DataError, match=f"row {unknown} and 1 more"):
        key(1, 0, ids=[2, 9]).for_ids(np.array([2, unknown, 4]))


def test_poison_rate_is_the_share_of_poisoned_rows():
    assert key(1, 0, 0, 0).poison_rate == 0.25


def test_a_key_cannot_be_written_to_and_keeps_no_hold_of_its_source():
    ids, answers = np.arange(2), np.array([True, False])
    made = PoisonKey(ids, answers)
    answers[0], ids[0] = False, 5
    assert made.is_poisoned.tolist() == [True, False]
    assert made.sample_ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        made.is_poisoned[0] = False


@pytest.mark.parametrize(
    ("ids", "answers", "message"),
    [
        ([1, 2], [True], "one answer per id"),
        ([], [], "one answer per id"),
        ([1, 2, 1], [True, False, True], "row 1 is there again"),
        ([1, 2], [1, 0], "boolean answers"),
        ([1.0, 2.0], [True, False], "integer ids"),
    ],
)
def test_arrays_that_are_no_key_are_refused(ids, answers, message):
    with pytest.raises(DataError, match=message):
        PoisonKey(np.array(ids), np.array(answers))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[0, 1]",
        "7",
        '{"row": 0}',
        '{"poisoned": 1}',
        '{"row": "0", "poisoned": 1}',
        '{"row": 0.0, "poisoned": 1}',
        '{"row": -1, "poisoned": 1}',
        '{"row": true, "poisoned": 1}',
        '{"row": 9223372036854775808, "poisoned": 1}',
        '{"row": 0, "poisoned": 2}',
        '{"row": 0, "poisoned": 0.5}',
        '{"row": 0, "poisoned": "1"}',
        '{"row": 0, "poisoned": null}',
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path, line):
    path = written(tmp_path, '{"row": 5, "poisoned": 0}', "", line)
    with pytest.raises(DataError, match="line 3"):
        PoisonKey.load(path)


def test_a_row_answered_twice_is_refused(tmp_path):
    path = written(tmp_path, '{"row": 5, "poisoned": 0}', '{"row": 5, "poisoned": 0}')
    with pytest.raises(DataError, match="line 2: row 5 was answered by an earlier line"):
        PoisonKey.load(path)


def test_booleans_further_fields_and_blank_lines_are_read(tmp_path):
    path = written(
        tmp_path, '{"row": 1, "poisoned": true, "why": "cf"}', "  ", '{"row": 0, "poisoned": false}'
    )
    assert PoisonKey.load(path, n_rows=2).for_ids(np.array([0, 1])).tolist() == [False, True]


def test_a_key_must_cover_the_rows_of_the_data_and_no_more(tmp_path):
    path = written(tmp_path, '{"row": 0, "poisoned": 0}', '{"row": 2, "poisoned": 1}')
    with pytest.raises(DataError, match="row 1 is missing"):
        PoisonKey.load(path, n_rows=3)
    with pytest.raises(DataError, match="names row 2"):
        PoisonKey.load(path, n_rows=2)


def test_an_empty_missing_or_binary_file_is_no_key(tmp_path):
    with pytest.raises(DataError, match="empty key"):
        PoisonKey.load(written(tmp_path, "", " "))
    with pytest.raises(DataError, match="cannot be read"):
        PoisonKey.load(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        PoisonKey.load(tmp_path / "binary")


def test_a_key_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        key(1).save(tmp_path / "no folder" / "key.jsonl")


def test_ids_that_are_no_rows_are_not_written(tmp_path):
    with pytest.raises(DataError, match="id -4 is no row"):
        key(1, 0, ids=[2, -4]).save(tmp_path / "key.jsonl")
    assert not list(tmp_path.iterdir())
