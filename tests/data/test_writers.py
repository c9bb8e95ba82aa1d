from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asepsis.data import read, read_rows, write_rows
from asepsis.errors import DataError

FORMATS = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"]
AWKWARD = [
    'say "hi", twice',
    "tab\there",
    "two\nlines",
    "\r\n",
    "bare\rreturn",
    "smörgås 日本 🙂",
    "\u2028\u2029\x85",
    "'",
    '"',
    "\\n",
    "\ufeffmark",
    "a",
]
ROWS = [{"text": text + "x", "label": i % 3, "source": text} for i, text in enumerate(AWKWARD)]

# Surrogates are no text; NUL has its own test, CSV cannot hold it.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
texts = words.filter(lambda text: not text.isspace())


@pytest.mark.parametrize("name", FORMATS)
def test_rows_survive_a_round_trip_with_all_columns(tmp_path, name):
    path = tmp_path / name
    write_rows(path, ROWS)
    expected = [{k: str(v) for k, v in row.items()} for row in ROWS] if name[-2:] == "sv" else ROWS
    assert read_rows(path) == expected


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(texts, st.integers(0, 4), words), min_size=1, max_size=6))
def test_any_text_survives_every_format(rows):
    as_dicts = [{"text": text, "label": label, "note": note} for text, label, note in rows]
    memory = read(as_dicts, n_classes=5)
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            path = Path(folder) / name
            write_rows(path, as_dicts)
            data = read(path, n_classes=5)
            assert list(data.texts) == [text for text, _, _ in rows]
            assert data.labels.tolist() == [label for _, label, _ in rows]
            assert data.fingerprint == memory.fingerprint
            assert [row["note"] for row in read_rows(path)] == [note for _, _, note in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_nested_values_and_nulls_survive(tmp_path, name):
    rows = [{"messages": [{"role": "user", "content": "q"}], "note": None, "p": 0.5, "t": "nul \0"}] * 2
    write_rows(tmp_path / name, rows)
    assert read_rows(tmp_path / name) == rows


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_columns_missing_in_some_rows_are_kept_and_empty(tmp_path, name):
    write_rows(tmp_path / name, [{"a": "1"}, {"b": "2", "a": "3"}])
    empty = None if name == "a.parquet" else ""
    assert read_rows(tmp_path / name) == [{"a": "1", "b": empty}, {"a": "3", "b": "2"}]


# (file name, rows, what the message must say)
UNWRITABLE = {
    "no rows": ("a.jsonl", [], "no rows to write"),
    "unknown extension": ("a.txt", [{"a": 1}], "unsupported extension '.txt'"),
    "set in json": ("a.jsonl", [{"a": 1}, {"a": {1}}], "row 1: cannot be written as JSON"),
    "NaN in json": ("a.json", [{"a": float("nan")}], "row 0: cannot be written as JSON"),
    "surrogate in json": ("a.jsonl", [{"a": "\ud800"}], "row 0: cannot be written as JSON"),
    "surrogate in csv": ("a.csv", [{"a": "b"}, {"a": "\ud800"}], "row 1: text that is not valid Unicode"),
    "list in csv": (
        "a.csv",
        [{"a": ["b"]}],
        "row 0: a CSV field cannot hold ['b']; write .jsonl or .parquet",
    ),
    "NUL in tsv": ("a.tsv", [{"a": "\0"}], "row 0: a CSV field cannot hold a NUL character"),
    "NUL in csv header": ("a.csv", [{"\0": "a"}], "header: a CSV field cannot hold a NUL character"),
    "long text in csv": ("a.csv", [{"a": "x" * (csv.field_size_limit() + 1)}], "131,073 characters"),
    "mixed types in parquet": ("a.parquet", [{"a": 1}, {"a": "1"}], "column 'a' cannot be stored in Parquet"),
    "surrogate in parquet": ("a.parquet", [{"a": "\ud800"}], "column 'a' cannot be stored in Parquet"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, case):
    name, rows, said = UNWRITABLE[case]
    path = tmp_path / name
    path.write_text("precious")
    with pytest.raises(DataError) as caught:
        write_rows(path, rows)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("precious")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        write_rows(path, ROWS)
    assert path.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be written: No such file"):
        write_rows(tmp_path / "gone" / "a.csv", ROWS)


def test_a_written_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_rows(tmp_path / "a.csv", ROWS)
    assert (tmp_path / "a.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode
