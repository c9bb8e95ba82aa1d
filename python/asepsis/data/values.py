"""Single values: which are whole numbers or usable text, how many classes rows may imply, how they look in a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from asepsis.errors import DataError

MAX_CLASSES = 10_000
"""More classes than this are taken only from a caller who says so with ``n_classes``."""

# 18 digits always fit int64, and int() of a hostile million-digit string never runs.
# what 64 bits hold: Python's own numbers go on for ever, and printing one of thousands of digits is refused
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_WHOLE = re.compile(r"[+-]?0*[0-9]{1,18}(\.0*)?", re.ASCII)


def whole_number(value: Any) -> int | None:
    """Return ``value`` as an int where it is one without loss, else None.

    Taken: integers, whole floats (``1.0``), and strings that spell either (``"1"``, ``"1.0"``). Not taken: booleans,
    fractions, NaN, infinities, None, numbers beyond 64 bits, or of more than 18 digits in a string.
    """
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value) if _LOWEST <= value <= _HIGHEST else None
    if isinstance(value, (float, np.floating)):
        return int(value) if float(value).is_integer() and abs(value) < _HIGHEST else None
    if isinstance(value, str):
        spelled = value.strip()
        return int(spelled.partition(".")[0]) if len(spelled) < 100 and _WHOLE.fullmatch(spelled) else None
    return None


def class_limit(n_rows: int) -> int:
    """Return the bound below which every label must lie when the number of classes was not given.

    A label at or above the number of rows (two at least) or ``MAX_CLASSES`` is a column of ids, prices or years that was
    mistaken for classes; building that many classes would only fail later and further from the cause.
    """
    return min(max(n_rows, 2), MAX_CLASSES)


def implied_classes(top_label: int) -> int:
    """Return the number of classes implied by the largest label: two at least, a classifier has no fewer."""
    return max(top_label + 1, 2)


def shown(value: Any, *, width: int = 60) -> str:
    """Return ``repr(value)`` cut to ``width`` characters: safe to print, control characters escaped."""
    try:
        text = repr(value[: width + 1] if isinstance(value, (str, bytes, list)) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, nesting without end
        text = f"{type(value).__name__} too large to be shown"
    return text if len(text) <= width else text[: width - 3] + "..."


def listed(names: Iterable[str], *, most: int = 20) -> str:
    """Return names as ``'a', 'b', ...`` for a message."""
    names = list(names)
    return ", ".join(shown(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def text_of(row: Mapping[str, Any], column: str, where: str, *, blank: bool = False) -> str:
    """Return the text under ``column``, or raise ``DataError`` when it is missing, null, no string or blank."""
    if column not in row:
        raise DataError(f"{where}: no column {shown(column)} in this row; columns there: {listed(row)}")
    return checked_text(row[column], f"{where}: {shown(column)}", blank=blank)


def checked_text(value: Any, what: str, *, blank: bool = False) -> str:
    """Return ``value`` if it is text a tokenizer can take, not blank unless ``blank``; ``what`` names it in the error."""
    if value is None:
        raise DataError(f"{what} is null; expected text; drop the row or fill it in")
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, got {type(value).__name__} {shown(value)}")
    if not blank and (not value or value.isspace()):
        raise DataError(f"{what} is empty; expected text; drop the row or fill it in")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{what} is not valid Unicode (half a surrogate pair at character {error.start}), which no tokenizer accepts"
            ) from error
    return value
