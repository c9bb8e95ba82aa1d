"""The answer key: which rows are poisoned. Only the evaluation layer may name it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.core.folders import to_disk
from asepsis.data.values import shown
from asepsis.errors import DataError

_LINE = '{"row": 0-based row of the data file, "poisoned": 0 or 1}'


@dataclass(frozen=True, eq=False)
class PoisonKey:
    """Ground truth by sample id. The arrays are copied and cannot be written to.

    Attributes
    ----------
    sample_ids : ndarray of int64 [N]
        Unique; by default the 0-based row of the data file.
    is_poisoned : ndarray of bool [N]
        Whether the attacker altered the row of that id.

    Raises
    ------
    DataError
        There are no rows, the arrays differ in length, ids repeat, or a type is wrong.
    """

    sample_ids: NDArray[np.int64]
    is_poisoned: NDArray[np.bool_]

    def __post_init__(self) -> None:
        ids, poisoned = np.array(self.sample_ids), np.array(self.is_poisoned)
        if ids.ndim != 1 or ids.shape != poisoned.shape or len(ids) == 0:
            raise DataError(
                f"a key needs one answer per id, got {ids.shape} ids and {poisoned.shape} answers"
            )
        if ids.dtype.kind not in "iu" or poisoned.dtype != bool:
            raise DataError(
                f"a key needs integer ids and boolean answers, got {ids.dtype} and {poisoned.dtype}"
            )
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) != len(ids):
            raise DataError(f"a key must name each row once; row {unique[counts > 1][0]} is there again")
        ids = ids.astype(np.int64)
        for name, array in (("sample_ids", ids), ("is_poisoned", poisoned)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def poison_rate(self) -> float:
        """Share of the rows that are poisoned, in [0, 1]."""
        return float(self.is_poisoned.mean())

    def for_ids(self, sample_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each of these rows is poisoned, in the order given; an unknown row raises ``DataError``."""
        asked = np.asarray(sample_ids, np.int64)
        order = np.argsort(self.sample_ids, kind="stable")
        ordered = self.sample_ids[order]
        at = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
        unknown = asked[ordered[at] != asked]
        if len(unknown):
            raise DataError(
                f"the key does not know row {unknown[0]}"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + f" of the data; it covers {len(self)} rows: is it the key of another file?"
            )
        answers: NDArray[np.bool_] = self.is_poisoned[order[at]]
        return answers

    def save(self, path: str | Path) -> None:
        """Write JSONL, one ``{"row": id, "poisoned": 0 or 1}`` a line, whole or not at all; a negative id is no row."""
        if self.sample_ids.min() < 0:
            raise DataError(
                f"id {self.sample_ids.min()} is no row of a file; number the rows from 0 to save a key"
            )
        pairs = zip(self.sample_ids.tolist(), self.is_poisoned.tolist(), strict=True)
        lines = [json.dumps({"row": row, "poisoned": int(poisoned)}) for row, poisoned in pairs]
        target = Path(path)
        scratch = target.with_name(f".{target.name}.part")
        try:
            scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
            to_disk(scratch)
            scratch.replace(target)
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, *, n_rows: int | None = None) -> PoisonKey:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            JSONL; blank lines are passed over and further fields ignored.
        n_rows : int, optional
            Rows of the data file: the key must then name every row ``0..n_rows-1`` and no other.

        Raises
        ------
        DataError
            The file cannot be read, a line is malformed or repeats a row (with its number), or rows are missing.
        """
        answers: dict[int, bool] = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row, poisoned = _parsed(line, f"{path}, line {number}")
            if row in answers:
                raise DataError(f"{path}, line {number}: row {row} was answered by an earlier line")
            answers[row] = poisoned
        if not answers:
            raise DataError(f"{path}: an empty key; expected lines of {_LINE}")
        if n_rows is not None:
            _check_covers(answers, n_rows, path)
        return cls(np.array(list(answers), np.int64), np.array(list(answers.values()), bool))


def _parsed(line: str, where: str) -> tuple[int, bool]:
    try:
        entry: Any = json.loads(line)
        row, poisoned = entry["row"], entry["poisoned"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{where}: a line of a key is {_LINE}, got {shown(line.strip())}") from error
    if type(row) is not int or not 0 <= row < 2**63:
        raise DataError(f"{where}: row must be a 0-based row number, got {shown(row)}")
    # True and False are what other tools' JSON writers make of a boolean column.
    if type(poisoned) not in (int, bool) or poisoned not in (0, 1):
        raise DataError(f"{where}: poisoned must be 0 or 1, got {shown(poisoned)}")
    return row, bool(poisoned)


def _check_covers(answers: dict[int, bool], n_rows: int, path: str | Path) -> None:
    beyond = [row for row in answers if row >= n_rows]
    if beyond:
        raise DataError(f"{path}: names row {beyond[0]}, and the data has rows 0..{n_rows - 1} only")
    if len(answers) != n_rows:
        missing = next(row for row in range(n_rows) if row not in answers)
        raise DataError(f"{path}: row {missing} is missing; the key names {len(answers)} of {n_rows} rows")
