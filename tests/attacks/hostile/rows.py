"""Data files that lie, bomb or do not end: each must be refused with its place, in bounded memory."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from hostile import Corpus
from hostile.folders import MARKER, Payload

ROWS = Corpus("rows that are refused")
#: Rows that are odd and lawful: they are read as they stand.
ODD = Corpus("rows that are taken as they are")

GOOD = '{"text": "fine", "label": 0}\n'


def file(name: str, suffix: str, content: str | bytes, says: str, corpus: Corpus = ROWS) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    corpus.add(name, says)(lambda folder: (folder / f"rows{suffix}").write_bytes(raw) and None)


def line(name: str, content: str, says: str) -> None:
    """Add a JSON Lines file with a good row, then this one."""
    file(name, ".jsonl", GOOD + content + "\n", says)


def row(name: str, says: str, **values: Any) -> None:
    line(name, json.dumps({"text": "fine", "label": 0, **values}), says)


_MALFORMED = "line 2.*(malformed|cannot be taken in|expected a JSON object)"
line("nesting a hundred thousand deep", '{"text":' * 10**5, _MALFORMED)
line("arrays a hundred thousand deep", '{"text": ' + "[" * 10**5 + "]" * 10**5 + ', "label": 0}', _MALFORMED)
line("a number of 5,000 digits", '{"text": "a", "label": ' + "9" * 5000 + "}", _MALFORMED)
line("a row that is an array", "[1, 2]", _MALFORMED)
line("a row that is null", "null", _MALFORMED)
line("a row that is a number", "7", _MALFORMED)
line("half a row", '{"text": "a"', _MALFORMED)
line("two rows on a line", GOOD.strip() + GOOD.strip(), _MALFORMED)
line("single quotes", "{'text': 'a', 'label': 0}", _MALFORMED)
line("a comment", "// text", _MALFORMED)
line("a row in Python", '{"text": "a", "label": None}', _MALFORMED)
_LABEL = "line 2.*label .*(not a whole number|negative|out of range|classes)"
for shown, label in {
    "a label of 4,299 digits": int("9" * 4299),
    "a label of 2**63": 2**63,
    "a label of 10**18": 10**18,
    "a label of 10**308": 1e308,
    "a label below zero": -1,
    "a label of -2**63": -(2**63),
    "a label with a fraction": 0.5,
    "a label that is true": True,
    "a label that is null": None,
    "a label that is a list": [0],
    "a label that is an object": {"a": 0},
    "a label that is a word": "positive",
    "a label that is a formula": "=1+1",
    "a label in other digits": "１",
    "a label in hexadecimal": "0x1",
    "a label with an underscore": "1_0",
    "a label of a million digits": "9" * 10**6,
    "a label beyond the range": 500,
}.items():
    row(shown, _LABEL, label=label)
line("a label that is NaN", '{"text": "a", "label": NaN}', _LABEL)
line("a label that is infinite", '{"text": "a", "label": 1e999}', _LABEL)
_TEXT = "line 2.*(is empty|is null|must be text|not valid Unicode|no column)"
for shown, text in {
    "a text that is null": None,
    "a text that is a number": 7,
    "a text that is a list": ["a"],
    "a text that is an object": {"a": "b"},
    "a text of blanks": " \t\n",
    "a text of wide blanks": "\u3000\u2003",
    "half a surrogate pair": "a\ud800b",
    "the other half of a pair": "\udfff",
}.items():
    row(shown, _TEXT, text=text)
line("no text", '{"label": 0}', _TEXT)
line("no label", '{"text": "a"}', "line 2.*no column")
line("columns under other names", '{"Text": "a", "Label": 0}', _TEXT)
file(
    "bytes that are not UTF-8",
    ".jsonl",
    GOOD.encode() + b'{"text": "\xff", "label": 0}\n',
    "not UTF-8: byte 0xff",
)
file("text in Latin-1", ".csv", "text,label\ncaf\xe9,0\n".encode("latin-1"), "not UTF-8")
file("text in UTF-16", ".csv", "text,label\na,0\n".encode("utf-16"), "UTF-16")
file("an overlong slash", ".jsonl", GOOD.encode() + b'{"text": "\xc0\xaf", "label": 0}\n', "not UTF-8")
file("nothing", ".jsonl", b"", "no rows")
file("blank lines", ".jsonl", b"\n" * 1000, "no rows")
file("a header alone", ".csv", "text,label\n", "no rows")
file("a NUL in a table", ".csv", "text,label\na\0b,0\n", "NUL")
file(
    "a quote that never closes",
    ".csv",
    'text,label\n"a,0\n' + "b,1\n" * 100,
    "never closed|field of more than",
)
file("a field of 10 MB in a table", ".csv", "text,label\n" + "a" * (10 << 20) + ",0\n", "field of more than")
file("a quote inside a field", ".csv", 'text,label\n"a"b,0\n', "quot")
file("a bare carriage return", ".csv", "text,label\na\rb,0\n", "carriage return|fields")
file("a field too many", ".csv", "text,label\na,0,1\n", "expected 2 fields")
file("a field too few", ".csv", "text,label\na\n", "expected 2 fields")
file("a column twice", ".csv", "text,label,text\na,0,b\n", "twice")
file("a million columns", ".csv", ",".join(f"c{i}" for i in range(10**6)) + "\n", "1,000,000 columns")
file("a table that is an archive", ".csv", b"PK\x03\x04" + b"\0" * 100, "NUL|UTF-8")
file("an array of other things", ".json", '[{"text": "a", "label": 0}, 7]', "expected a JSON object")
file("an array that never ends", ".json", "[" * 10**5, "malformed|cannot be taken in")
file("an array cut short", ".json", '[{"text": "a", "label": 0},', "malformed")
file("an empty array", ".json", "[]", "no rows")
file("a Parquet file that is none", ".parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "Parquet|cannot be read")
file("a Parquet file of nothing", ".parquet", b"", "Parquet")
file("a Parquet file cut short", ".parquet", b"PAR1", "Parquet")
file(
    "a Parquet file with a footer of 4 GB",
    ".parquet",
    b"PAR1" + b"\0" * 8 + b"\xff\xff\xff\xffPAR1",
    "Parquet",
)
file("a pickle", ".pkl", pickle.dumps(Payload()), "unsupported extension")
file("a pickle under the name of rows", ".jsonl", pickle.dumps(Payload()), "not UTF-8|malformed|object")
file("a pickle under the name of Parquet", ".parquet", pickle.dumps(Payload()), "Parquet")
file("rows without an extension", "", GOOD, "unsupported extension")
file("a program", ".py", f"import os\nos.mkdir({MARKER!r})", "unsupported extension")
file("compressed rows", ".jsonl.gz", gzip.compress(GOOD.encode()), "unsupported extension")
file("compressed rows under a plain name", ".jsonl", gzip.compress(GOOD.encode()), "not UTF-8")
for ids in [(1, 1), (1, "1"), (1, 1.0), (2**63, 1), (-(2**63) - 1, 1), ("a", 1), (None, 1), (0.5, 1)]:
    lines = [json.dumps({"text": "a", "label": n % 2, "id": i}) for n, i in enumerate(ids)]
    file(f"the ids {ids[0]!r} and {ids[1]!r}", ".jsonl", "\n".join(lines), "id ", ROWS)


@ROWS.add("a zip bomb for rows", "NUL|not UTF-8|malformed")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "rows.jsonl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows", b"\0" * (32 << 20))


def parquet(name: str, says: str, **columns: Any) -> None:
    def make(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({key: value() if callable(value) else value for key, value in columns.items()})
        pq.write_table(table, folder / "rows.parquet", compression="zstd")

    ROWS.add(name, says)(make)


def repeated(text: Any, times: int) -> Any:
    def column() -> Any:
        import pyarrow as pa

        return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))

    return column


def equal(value: Any, times: int) -> Any:
    def column() -> Any:
        import pyarrow as pa

        return pa.repeat(pa.scalar(value), times)

    return column


parquet(
    "a text of 1 MB in 20,000 rows of 30 KB",
    "unfold",
    text=repeated("a" * (1 << 20), 20_000),
    label=equal(0, 20_000),
)
parquet("five million equal rows", "unfold", text=repeated("a", 5_000_000), label=equal(0, 5_000_000))
parquet("labels that are times", "not a whole number", text=["a"], label=[b"\0\1"])
parquet("texts that are bytes", "must be text", text=[b"\xff\xfe"], label=[0])
parquet("columns of nothing", "no rows", text=equal("a", 0), label=equal(0, 0))


@ROWS.add("a pipe instead of rows", "a device or a pipe")
def _(folder: Path) -> None:
    import os

    os.mkfifo(folder / "rows.jsonl")


@ROWS.add("a folder instead of rows", "a folder")
def _(folder: Path) -> None:
    (folder / "rows.jsonl").mkdir()


@ROWS.add("a device instead of rows", "a device or a pipe")
def _(folder: Path) -> None:
    (folder / "rows.jsonl").symlink_to("/dev/zero")


def odd(name: str, text: str) -> None:
    file(name, ".jsonl", json.dumps({"text": text, "label": 0}) + "\n" + GOOD.replace("0", "1"), "", ODD)


#: What a reader of a report must be able to see through.
SHOWN = {
    "a script": "<script>alert(1)</script>",
    "an image that runs": '"><img src=x onerror=alert(1)>',
    "a template": "{{ 7 * 7 }}{% raw %}",
    "an entity": "&lt;b&gt; &#0; &amp;",
    "the end of a comment": "--> ]]> </style></pre></title>",
    "text that runs from right to left": "abc \u202e}cba{ \u202c",
    "text with isolates": "a\u2066b\u2067c\u2069",
    "marks of direction": "a\u200eb\u200fc",
    "spaces of no width": "tri\u200bgger\u200c\u200d\ufeff",
    "soft hyphens and joiners": "a\u00adb\u2060c\u034fd",
    "blank letters": "\u3164 \u115f \u2800 \uffa0 a",
    "colors of a terminal": "\x1b[31mred\x1b[0m",
    "a terminal's title": "\x1b]0;owned\x07",
    "a terminal that clears": "\x1b[2J\x1b[H",
    "a link of a terminal": "\x1b]8;;http://evil.example\x07here\x1b]8;;\x07",
    "bells and deletes": "a\x07\x08\x7fb",
    "controls of the second kind": "a\x9b31mb\x85c",
    "lines within a line": "a\rb\x0bc\x0cd\u2028e\u2029f",
    "tags": "a\U000e0041\U000e0042\U000e007f",
    "selectors of variants": "a\ufe0f\U000e0100",
    "private signs": "\ue000\U0010fffd",
    "unassigned signs": "\u0378\U000e0fff",
    "a formula": '=HYPERLINK("http://evil.example","here")',
    "a formula with a plus": "+1+cmd|' /C calc'!A0",
    "a formula with a minus": "-2+3+cmd|' /C calc'!A0",
    "a formula with an at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a cell of Markdown": "a | b | [x](javascript:alert(1)) `c`",
    "letters from other alphabets": "раураl",
    "signs of combining": "Z" + "\u0351" * 500,
}
for name, text in SHOWN.items():
    odd(name, text)
odd("a text of 10 MB", "word " * (2 << 20))
odd("a text of one word of 10 MB", "a" * (10 << 20))
odd("a text of 10 MB of signs outside the plane", "\U0001f600" * (10 << 18))
