from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asepsis.data import read, read_rows
from asepsis.errors import DataError

GOOD = '{"text": "fine", "label": 0}\n'


def put(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# (file name, content, what the message must say besides the file's name)
MALFORMED = {
    "empty": ("a.jsonl", "", ["no rows", "empty"]),
    "blank lines": ("a.jsonl", "\n  \n\r\n", ["no rows", "blank"]),
    "empty csv": ("a.csv", "", ["no rows", "empty"]),
    "blank csv": ("a.csv", "\n\n", ["no rows", "blank"]),
    "header only": ("a.csv", "text,label\n", ["no rows", "header", "'text', 'label'"]),
    "header only tsv": ("a.tsv", "text\tlabel\n\n", ["no rows", "header"]),
    "empty array": ("a.json", "[]", ["no rows"]),
    "cut off json": ("a.jsonl", GOOD + '{"text": "x", "lab', ["line 2", "malformed JSON", "column"]),
    "two objects on a line": ("a.jsonl", GOOD + GOOD.strip() + GOOD, ["line 2", "malformed", "Extra data"]),
    "json array line": ("a.jsonl", '[{"text": "x"}]\n', ["line 1", "object", "an array", ".json"]),
    "json string line": ("a.jsonl", GOOD + '"x"\n', ["line 2", "object", "a string"]),
    "json null line": ("a.jsonl", "null\n", ["line 1", "object", "null"]),
    "json number line": ("a.jsonl", "\n3\n", ["line 2", "object", "a number"]),
    "huge number": ("a.jsonl", '{"label": ' + "9" * 5000 + "}\n", ["line 1"]),
    "endless nesting": ("a.jsonl", "[" * 200_000 + "\n", ["line 1"]),
    "array of non-objects": ("a.json", '[{"text": "a", "label": 0}, 5]', ["row 1", "a number"]),
    "cut off array": ("a.json", '[\n{"text": "a"},\n{"te', ["line 3", "malformed"]),
    "too few fields": ("a.csv", "text,label\na,0\nb\n", ["line 3", "expected 2 fields", "got 1"]),
    "too many fields": ("a.csv", "text,label\na, b,0\n", ["line 2", "expected 2 fields", "got 3", "quotes"]),
    "tsv fields": ("a.tsv", "text\tlabel\na\t0\t1\n", ["line 2", "got 3"]),
    "quote never closed": ("a.csv", 'text,label\na,0\n"b,1\nc,0\n', ["line 3", "never closed"]),
    "bad quoting": ("a.csv", 'text,label\n"a"b,0\n', ["line 2", "quot"]),
    "old Mac line ends": ("a.csv", "text,label\ra,0\rb,1\r", ["line 1", "carriage return"]),
    "repeated column": ("a.csv", "text,label,text\na,0,b\n", ["'text'", "twice"]),
    "NUL byte": ("a.csv", "text,label\na,0\nb\0,1\n", ["line 3", "NUL"]),
    "not utf-8": (
        "a.jsonl",
        GOOD.encode() + b'{"text": "caf\xe9"}',
        ["line 2", "UTF-8", "0xe9", "offset 42"],
    ),
    "not utf-8 after a BOM": ("a.csv", b"\xef\xbb\xbfte\xffxt,label\n", ["line 1", "offset 5"]),
    "not utf-8 a line after a BOM": ("a.csv", b"\xef\xbb\xbftext\n\xff\n", ["line 2", "offset 8"]),
    "utf-16": ("a.csv", "text,label\n".encode("utf-16"), ["line 1", "UTF-16"]),
    "not parquet": ("a.parquet", "text,label\na,0\n", ["Parquet"]),
    "empty parquet": ("a.parquet", "", ["Parquet"]),
    "unknown extension": ("a.xlsx", "x", ["unsupported extension '.xlsx'", ".jsonl", ".parquet"]),
    "no extension": ("rows", "x", ["unsupported extension ''"]),
    "compressed": ("a.jsonl.gz", "x", ["unsupported extension '.gz'"]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_named_with_its_line_and_problem(tmp_path, case):
    name, content, said = MALFORMED[case]
    path = put(tmp_path, name, content)
    for reader in (read, read_rows):
        with pytest.raises(DataError) as caught:
            reader(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        for words in said:
            assert words in message


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="a folder, not a file"):
        read_rows(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    for source in (tmp_path / "gone.csv", tmp_path / "gone"):
        with pytest.raises(DataError, match="no such file"):
            read_rows(source)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = put(tmp_path, "a.jsonl", GOOD)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a mode would not stop root
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Permission denied"):
        read_rows(path)


def test_an_enormous_field_is_refused(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\nshort,0\n" + "x" * (csv.field_size_limit() + 1) + ",1\n")
    with pytest.raises(DataError, match=r"line 3: a field of more than 131,072 characters.*JSONL"):
        read_rows(path)


def test_truncated_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 5000, "label": [0] * 5000}), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_rows(path)


def test_parquet_without_rows_lists_its_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match=r"no rows: columns \('text'\)"):
        read_rows(path)


def test_lines_are_counted_through_blank_lines_and_quoted_breaks(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\n\n"two\nlines",0\n\nbad\n')
    with pytest.raises(DataError, match="line 6: expected 2 fields"):
        read_rows(path)


def test_blank_lines_are_no_rows(tmp_path):
    csv_rows = read_rows(put(tmp_path, "a.csv", "\ntext,label\r\n\r\na,0\r\n  \r\nb,1"))
    json_rows = read_rows(
        put(tmp_path, "a.jsonl", '\n{"text":"a","label":"0"}\n\n{"text":"b","label":"1"}\n\n')
    )
    assert csv_rows == json_rows == [{"text": "a", "label": "0"}, {"text": "b", "label": "1"}]


def test_an_empty_quoted_field_in_a_single_column_is_a_row(tmp_path):
    assert read_rows(put(tmp_path, "a.csv", 'text\na\n""\nb\n')) == [
        {"text": "a"},
        {"text": ""},
        {"text": "b"},
    ]


@pytest.mark.parametrize("name", ["a.CSV", "a.Tsv", "a.JSONL", "a.Json", "a.PARQUET"])
def test_extensions_are_recognized_in_upper_case(tmp_path, name):
    path = tmp_path / name
    if name.endswith("PARQUET"):
        pq.write_table(pa.table({"text": ["a"], "label": ["0"]}), path)
    elif name.lower().endswith("sv"):
        put(tmp_path, name, "text,label\na,0\n".replace(",", "," if "CSV" in name else "\t"))
    else:
        put(tmp_path, name, json.dumps({"text": "a", "label": "0"}))
    assert read_rows(path) == [{"text": "a", "label": "0"}]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    body = "text,label\na,0\n" if name == "a.csv" else '{"text": "a", "label": "0"}'
    assert read_rows(put(tmp_path, name, b"\xef\xbb\xbf" + body.encode())) == [{"text": "a", "label": "0"}]


def test_json_takes_an_array_or_lines(tmp_path):
    rows = [{"text": "a\u2028b", "label": 0}, {"text": "c", "label": 1}]
    array = put(tmp_path, "a.json", "  \n" + json.dumps(rows, indent=2, ensure_ascii=False))
    lines = put(tmp_path, "b.json", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_rows(array) == read_rows(lines) == rows
