"""Reading files row by row: JSONL, JSON, CSV, TSV and Parquet, each problem told with its line."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from asepsis.core.foreign import first_line
from asepsis.data.values import listed, shown
from asepsis.errors import DataError, NoRows

Row = dict[str, Any]
Placed = tuple[str, Row]

EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BATCH = 1024
# more columns than any table of texts has; each row is made a dict of all of them
_MOST_COLUMNS = 1 << 16
# what a compressed file may unfold to: this much, and this many times its size
_ROOM, _RATIO, _PER_ROW = 1 << 28, 200, 64


def read_rows(path: str | Path) -> list[Row]:
    """Read every row of a file with all its columns, as they stand.

    Parameters
    ----------
    path : str or Path
        A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file. CSV and TSV values are strings.

    Returns
    -------
    list of dict
        One dict a row, in file order; blank lines are no rows.

    Raises
    ------
    DataError
        The file is missing, unreadable, empty or malformed.
    """
    return [row for _, row in iter_rows(path)]


def iter_rows(path: str | Path) -> Iterator[Placed]:
    """Yield ``(place, row)``: the row as a dict and where it starts, ``line 7`` (from 1) or ``row 6`` (from 0)."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file; name one {_extensions()} file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: a device or a pipe, which may never end; name a regular file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unsupported extension {path.suffix!r}; expected {_extensions()}")
    empty = True
    try:
        with path.open("rb") as file:
            for placed in reader(path, file):
                empty = False
                yield placed
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error
    if empty:
        raise NoRows(f"{path}: no rows: the file is empty or holds only blank lines")


def _extensions() -> str:
    return ", ".join(EXTENSIONS[:-1]) + f" or {EXTENSIONS[-1]}"


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    # Lines are decoded one by one, so that a bad byte has a line and an offset, and they end at \n only: U+2028, or a \r
    # inside a quoted CSV field, belongs to the text.
    offset = 0
    for number, raw in enumerate(file, 1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = offset + len(raw) - len(line) + error.start
            utf16 = number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            raise DataError(
                f"{path}, line {number}: not UTF-8: byte 0x{line[error.start]:02x} at offset {byte}"
                + (" (it looks like UTF-16)" if utf16 else "")
                + "; save the file as UTF-8"
            ) from error
        offset += len(raw)


def _json_lines(path: Path, file: BinaryIO) -> Iterator[Placed]:
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        where = f"line {number}"
        value = _parsed(line, path, where)
        if not isinstance(value, dict):
            advice = (
                "; a file that is one JSON array takes the extension .json" if isinstance(value, list) else ""
            )
            raise DataError(
                f"{path}, {where}: expected a JSON object such as {{...}}, got {_kind(value)}{advice}"
            )
        yield where, value


def _json(path: Path, file: BinaryIO) -> Iterator[Placed]:
    # `.json` is an array in some collections and JSON Lines in others: the first character decides.
    head = file.read(_BATCH).removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if not head.startswith(b"["):
        yield from _json_lines(path, file)
        return
    values = _parsed("".join(line for _, line in _lines(path, file)), path, None)
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{path}, row {index}: expected a JSON object, got {_kind(value)}")
        yield f"row {index}", value


def _parsed(text: str, path: Path, where: str | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, {where or f'line {error.lineno}'}: malformed JSON at column {error.colno}: {error.msg}"
            + ("; JSON Lines holds one whole object on each line" if where else "")
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        raise DataError(f"{path}, {where or 'JSON array'}: JSON that cannot be taken in: {error}") from error


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return f"{names.get(type(value), 'a number')}: {shown(value, width=40)}"


def _comma(path: Path, file: BinaryIO) -> Iterator[Placed]:
    return _delimited(path, file, delimiter=",")


def _tab(path: Path, file: BinaryIO) -> Iterator[Placed]:
    return _delimited(path, file, delimiter="\t")


def _delimited(path: Path, file: BinaryIO, *, delimiter: str) -> Iterator[Placed]:
    header: list[str] | None = None
    rows = 0
    for number, fields in _records(path, file, delimiter):
        if header is None:
            _refuse_wide(path, len(fields))
            _refuse_repeated(path, fields)
            header = fields
            continue
        if len(fields) != len(header):
            if len(fields) == 1 and not fields[0].strip():
                continue
            raise DataError(
                f"{path}, line {number}: expected {len(header)} fields as in the header, got {len(fields)}; "
                "a field that contains the delimiter, a quote or a line break must stand in double quotes"
            )
        rows += 1
        yield f"line {number}", dict(zip(header, fields, strict=True))
    if header is not None and rows == 0:
        raise NoRows(f"{path}: no rows: a header ({listed(header)}) with nothing under it")


def _records(path: Path, file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    def lines() -> Iterator[str]:
        for number, line in _lines(path, file):
            if "\0" in line:
                raise DataError(
                    f"{path}, line {number}: holds a NUL byte; this is no text file, or a damaged one"
                )
            yield line

    # strict: without it a forgotten closing quote swallows the rest of the file as one field, silently.
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {number}: {_csv_problem(str(error))}") from error
        if fields:
            yield number, fields


def _csv_problem(message: str) -> str:
    if "field larger" in message:
        return (
            f"a field of more than {csv.field_size_limit():,} characters: a quote that is never closed, or a text "
            "that belongs in JSONL or Parquet"
        )
    if "unexpected end" in message:
        return "a quoted field that starts here is never closed"
    if "new-line" in message:
        return "a bare carriage return outside quotes; save the file with \\n or \\r\\n line ends"
    return f"malformed quoting ({message}); a quote inside a quoted field is written twice"


def _parquet(path: Path, file: BinaryIO) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index, size = 0, path.stat().st_size
    budget = _ROOM + _RATIO * size
    try:
        described = pq.ParquetFile(file)
        names = described.schema_arrow.names
        _refuse_wide(path, len(described.schema))
        _refuse_repeated(path, names)
        if described.metadata.num_rows == 0:
            raise DataError(f"{path}: no rows: columns ({listed(names)}) with nothing in them")
        if described.metadata.num_rows * _PER_ROW > budget:
            raise _unfolds(path, size, described.metadata.num_rows)
        leaves = [described.schema.column(i) for i in range(len(described.schema))]
        # a text that stands in a million rows is in the file once, and stays once in memory
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        file.seek(0)
        table = pq.ParquetFile(file, read_dictionary=texts)
        for batch in table.iter_batches(batch_size=_BATCH):
            columns = [_column(batch.column(i)) for i in range(batch.num_columns)]
            for values in zip(*columns, strict=True):
                row = dict(zip(names, (v() if callable(v) else v for v in values), strict=True))
                budget -= _PER_ROW + sum(map(_extent, row.values()))
                if budget < 0:
                    raise _unfolds(path, size, index)
                yield f"row {index}", row
                index += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file (stopped at row {index}): {first_line(error)}"
        ) from error


def _unfolds(path: Path, size: int, rows: int) -> DataError:
    return DataError(
        f"{path}: {size:,} bytes unfold to more than {_ROOM + _RATIO * size:,} within {rows:,} rows; no honest file does that. "
        "Where yours does, write it as .jsonl"
    )


def _column(column: Any) -> Iterable[Any]:
    """Return a column's values, equal texts as one object; nested values as functions, so that one at a time is made."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        used = column.indices.unique().drop_null()
        words = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
        return [None if at is None else words[at] for at in column.indices.to_pylist()]
    if pa.types.is_nested(column.type):
        return [partial(_nested, column, at) for at in range(len(column))]
    values: list[Any] = column.to_pylist()
    return values


def _nested(column: Any, at: int) -> Any:
    return column[at].as_py()


def _extent(value: Any) -> int:
    """Return about how many characters a value has, nested ones too."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return 8 + sum(map(_extent, value))
    return sum(map(_extent, value.values())) if isinstance(value, dict) else 8


def _refuse_wide(path: Path, columns: int) -> None:
    if columns > _MOST_COLUMNS:
        raise DataError(
            f"{path}: {columns:,} columns, {_MOST_COLUMNS:,} at most are read; keep those you need"
        )


def _refuse_repeated(path: Path, columns: Iterable[str]) -> None:
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(f"{path}: column {shown(column)} occurs twice in the header; rename one of them")
        seen.add(column)


_READERS: dict[str, Callable[[Path, BinaryIO], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _comma,
    ".tsv": _tab,
    ".parquet": _parquet,
}
