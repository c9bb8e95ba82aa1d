from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asepsis.data import Data, read, write_rows
from asepsis.errors import ConfigError, DataError

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(6)]


def lines(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_the_same_rows_give_the_same_data_from_every_format(tmp_path, name):
    write_rows(tmp_path / name, ROWS)
    data = read(tmp_path / name)
    assert data.task == "classification"
    assert list(data.texts) == [row["text"] for row in ROWS]
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.labels.dtype == data.sample_ids.dtype == np.int64
    assert data.sample_ids.tolist() == list(range(6))
    assert data.n_classes == 2
    assert data.source == str(tmp_path / name)
    assert data.fingerprint == read(ROWS).fingerprint == read(str(tmp_path / name)).fingerprint


def test_other_columns_never_enter_the_data(tmp_path):
    keyed = [{**row, "poisoned": i % 2, "secret": f"KEY{i}"} for i, row in enumerate(ROWS)]
    data = read(lines(tmp_path, *keyed))
    assert data.fingerprint == read(ROWS).fingerprint
    assert not any("KEY" in str(value) for value in vars(data).values())


# (second row, options, what the message must say besides file and line)
BAD_ROWS = {
    "null text": ({"text": None, "label": 0}, {}, ["'text' is null"]),
    "empty text": ({"text": "", "label": 0}, {}, ["'text' is empty", "drop the row"]),
    "white text": ({"text": " \n", "label": 0}, {}, ["'text' is empty"]),
    "numeric text": ({"text": 5, "label": 0}, {}, ["'text' must be text, got int 5"]),
    "half a surrogate": ({"text": "a\ud800", "label": 0}, {}, ["valid Unicode", "character 1"]),
    "no text": ({"label": 0}, {}, ["no column 'text'", "columns there: 'label'"]),
    "no label": ({"text": "a", "y": 0}, {}, ["no column 'label'", "columns there: 'text', 'y'"]),
    "word label": (
        {"text": "a", "label": "pos"},
        {},
        ["label 'pos' is not a whole number", "map class names"],
    ),
    "true label": ({"text": "a", "label": True}, {}, ["label True is not a whole number"]),
    "null label": ({"text": "a", "label": None}, {}, ["label None is not a whole number"]),
    "half label": ({"text": "a", "label": 0.5}, {}, ["label 0.5 is not a whole number"]),
    "NaN label": ({"text": "a", "label": float("nan")}, {}, ["label nan is not a whole number"]),
    "infinite label": ({"text": "a", "label": float("inf")}, {}, ["label inf is not a whole number"]),
    "empty label": ({"text": "a", "label": ""}, {}, ["label '' is not a whole number"]),
    "list label": ({"text": "a", "label": [0]}, {}, ["label [0] is not a whole number"]),
    "long label": ({"text": "a", "label": "9" * 5000}, {}, ["is not a whole number"]),
    "negative label": ({"text": "a", "label": -1}, {}, ["label -1 is negative"]),
    "label too high": (
        {"text": "a", "label": 2},
        {"n_classes": 2},
        ["label 2 is out of range for 2 classes (0..1)"],
    ),
    "huge label": (
        {"text": "a", "label": 10**9},
        {},
        ["label 1000000000", "1,000,000,001 classes", "give n_classes"],
    ),
    "label above rows": ({"text": "a", "label": 3}, {}, ["label 3 would mean 4 classes", "3 rows allow 3"]),
    "no id": ({"text": "a", "label": 0}, {"id_column": "id"}, ["no id column 'id'"]),
    "word id": ({"text": "a", "label": 0, "id": "x1"}, {"id_column": "id"}, ["id 'x1'", "64-bit integer"]),
    "half id": ({"text": "a", "label": 0, "id": 0.5}, {"id_column": "id"}, ["id 0.5", "64-bit integer"]),
    "wide id": ({"text": "a", "label": 0, "id": 2**63}, {"id_column": "id"}, ["64-bit integer"]),
    "repeated id": ({"text": "a", "label": 0, "id": 7}, {"id_column": "id"}, ["id 7", "already used"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, case):
    bad, options, said = BAD_ROWS[case]
    good = {"text": "fine", "label": 1, "id": 7}
    path = lines(tmp_path, good, bad, {**good, "id": 8})
    with pytest.raises(DataError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    for words in said:
        assert words in message


@pytest.mark.parametrize("options", [{"text_column": "body"}, {"label_column": "y"}])
def test_an_unknown_column_lists_those_present(options):
    with pytest.raises(
        DataError, match=r"no column '(body|y)'; columns there: 'text', 'label'; .*--text-column"
    ):
        read(ROWS, **options)


def test_an_unknown_column_is_not_excused_by_instruction_columns():
    rows = [{"prompt": "a", "completion": "b"}]
    assert read(rows).task == "causal"
    for options in ({"text_column": "body"}, {"task": "classification"}):
        with pytest.raises(DataError, match="no column"):
            read(rows, **options)


def test_labels_are_taken_as_strings_and_whole_floats(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,0\nb, 1\nc,1.0\nd,2.\ne,+2\nf,000\n")
    assert read(path).labels.tolist() == [0, 1, 1, 2, 2, 0]
    assert read([{"text": "a", "label": 1.0}, {"text": "b", "label": np.int32(0)}]).labels.tolist() == [1, 0]


@pytest.mark.parametrize(("labels", "classes"), [([0, 0], 2), ([1], 2), ([0, 1, 2], 3), ([2, 2, 2], 3)])
def test_classes_are_counted_from_the_largest_label(labels, classes):
    assert read([{"text": "a", "label": label} for label in labels]).n_classes == classes


def test_given_classes_allow_labels_that_the_rows_would_not():
    data = read([{"text": "a", "label": 150}], n_classes=151)
    assert (data.n_classes, data.labels.tolist()) == (151, [150])


def test_ten_thousand_classes_are_refused_even_with_the_rows_for_them():
    rows = [{"text": "a", "label": i} for i in range(10_001)]
    assert read(rows[:10_000]).n_classes == 10_000
    with pytest.raises(DataError, match=r"row 10000: label 10000 .* give n_classes"):
        read(rows)


def test_ids_come_from_their_column_in_row_order(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text,label\n9,a,0\n-3,b,1\n0,c,0\n")
    assert read(path, id_column="id").sample_ids.tolist() == [9, -3, 0]


def test_renamed_columns_are_read():
    rows = [{"sentence": "a", "y": 1, "text": "decoy", "label": 0}]
    data = read(rows, text_column="sentence", label_column="y")
    assert (list(data.texts), data.labels.tolist()) == (["a"], [1])


def test_text_and_label_win_over_instruction_columns_unless_causal_is_asked():
    rows = [{"text": "a", "label": 0, "prompt": "p", "completion": "c"}]
    assert read(rows).task == "classification"
    assert list(read(rows, task="causal").responses) == ["c"]
    with pytest.raises(DataError, match="no instruction columns; columns there: 'text', 'label'"):
        read(ROWS, task="causal")


def test_data_is_returned_as_it_is():
    data = read(ROWS)
    assert read(data) is data
    with pytest.raises(DataError, match="holds classification rows, not causal"):
        read(data, task="causal")


def test_options_out_of_range_are_refused():
    for options in ({"n_classes": 1}, {"task": "regression"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            read(ROWS, **options)
    with pytest.raises(DataError, match="n_classes=3 is for rows with a label"):
        read([{"prompt": "a", "completion": "b"}], n_classes=3)


def test_rows_of_data_read_stay_data():
    assert isinstance(read(ROWS).select([3, 1]), Data)
