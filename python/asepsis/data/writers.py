"""Writing rows back to a file, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

from asepsis.core.folders import to_disk
from asepsis.data.formats import EXTENSIONS
from asepsis.data.values import shown
from asepsis.errors import DataError

log = logging.getLogger("asepsis")

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")

Rows = Sequence[Mapping[str, Any]]


def write_rows(path: str | Path, rows: Rows) -> None:
    """Write rows to a file, all columns kept; the extension decides the format.

    The rows go to a temporary file beside the target, which takes the target's place only when it is complete: an error
    leaves whatever stood there before. Columns missing in some rows become null (an empty field in CSV and TSV).

    Parameters
    ----------
    path : str or Path
        Ends in ``.jsonl``, ``.json`` (one array), ``.csv``, ``.tsv`` or ``.parquet``. Its folder must exist.
    rows : sequence of mappings
        At least one. CSV and TSV hold strings and numbers only, and no text longer than ``csv.field_size_limit()``. Fields
        that a spreadsheet would run as formulas are written as they are, and counted in a warning.

    Raises
    ------
    DataError
        The extension is unknown, there are no rows, a value does not fit the format, or the file cannot be written.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise DataError(
            f"{path}: unsupported extension {path.suffix!r}; expected {', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}"
        )
    if not rows:
        raise DataError(f"{path}: no rows to write")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            writer(path, file, rows)
        to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(path: Path, rows: Rows) -> Iterator[bytes]:
    for index, row in enumerate(rows):
        try:
            yield json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {index}: cannot be written as JSON: {error}") from error


def _json_lines(path: Path, file: BinaryIO, rows: Rows) -> None:
    for line in _encoded(path, rows):
        file.write(line + b"\n")


def _json(path: Path, file: BinaryIO, rows: Rows) -> None:
    for index, line in enumerate(_encoded(path, rows)):
        file.write((b",\n" if index else b"[\n") + line)
    file.write(b"\n]\n")


def _comma(path: Path, file: BinaryIO, rows: Rows) -> None:
    _delimited(path, file, rows, delimiter=",")


def _tab(path: Path, file: BinaryIO, rows: Rows) -> None:
    _delimited(path, file, rows, delimiter="\t")


def _delimited(path: Path, file: BinaryIO, rows: Rows, *, delimiter: str) -> None:
    line = io.StringIO(newline="")
    plain = csv.writer(line, delimiter=delimiter, lineterminator="\n")
    # Older versions of the csv module quote only the line end they write themselves, never a bare \r.
    quoted = csv.writer(line, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    columns = _columns(rows)
    header: Mapping[str, Any] = {column: column for column in columns}
    formulas = 0
    for index, row in enumerate(chain([header], rows), -1):
        where = f"{path}, row {index}" if index >= 0 else f"{path}, header"
        texts = [_field(row.get(column), where) for column in columns]
        formulas += sum(text.startswith(_FORMULA) for text in texts if not _NUMBER.fullmatch(text))
        (quoted if any("\r" in text for text in texts) else plain).writerow(texts)
        try:
            file.write(line.getvalue().encode("utf-8"))
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: text that is not valid Unicode: {error}") from error
        line.seek(0)
        line.truncate()
    if formulas:
        # written as they are: a training must read the very texts that were meant
        log.warning(
            "%s: %d fields begin with =, +, - or @, which a spreadsheet runs as formulas; do not open it in one, or write "
            ".jsonl",
            path,
            formulas,
        )


def _field(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, Real)):
        raise DataError(f"{where}: a CSV field cannot hold {shown(value)}; write .jsonl or .parquet")
    text = str(value)
    if "\0" in text:
        raise DataError(f"{where}: a CSV field cannot hold a NUL character; write .jsonl or .parquet")
    if len(text) > csv.field_size_limit():
        raise DataError(
            f"{where}: a text of {len(text):,} characters, and CSV readers stop at {csv.field_size_limit():,}; "
            "write .jsonl or .parquet"
        )
    return text


def _parquet(path: Path, file: BinaryIO, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for column in _columns(rows):
        try:
            arrays[column] = pa.array([row.get(column) for row in rows])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: column {shown(column)} cannot be stored in Parquet, which wants one type a column: {error}"
            ) from error
    pq.write_table(pa.table(arrays), file)


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


_WRITERS: dict[str, Callable[[Path, BinaryIO, Rows], None]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _comma,
    ".tsv": _tab,
    ".parquet": _parquet,
}
