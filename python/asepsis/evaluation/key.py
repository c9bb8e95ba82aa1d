"""The answer key: which rows are poisoned. Only the evaluation layer may name it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import DataError


@dataclass(frozen=True, eq=False)
class PoisonKey:
    """Ground truth by sample id.

    Attributes
    ----------
    sample_ids : ndarray int64 [N]
    is_poisoned : ndarray bool [N]
    """

    sample_ids: NDArray[np.int64]
    is_poisoned: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(self.sample_ids) != len(self.is_poisoned):
            raise DataError(
                f"a key needs one answer per id, got {len(self.sample_ids)} ids and {len(self.is_poisoned)}"
            )
        if len(np.unique(self.sample_ids)) != len(self.sample_ids):
            raise DataError("a key must name each row once")

    @property
    def poison_rate(self) -> float:
        """Share of the rows that are poisoned, in [0, 1]."""
        return float(self.is_poisoned.mean())

    def for_ids(self, sample_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each of these rows is poisoned; a row the key does not know raises ``DataError``."""
        order = np.argsort(self.sample_ids, kind="stable")
        at = np.searchsorted(self.sample_ids[order], sample_ids)
        known = at < len(order)
        if not known.all() or not np.array_equal(self.sample_ids[order][at], sample_ids):
            raise DataError("the key does not cover every row of the data")
        return self.is_poisoned[order][at]

    def save(self, path: str | Path) -> None:
        """Write JSONL: ``{"row": id, "poisoned": 0 or 1}``."""
        pairs = zip(self.sample_ids.tolist(), self.is_poisoned.tolist(), strict=True)
        lines = [json.dumps({"row": row, "poisoned": int(poisoned)}) for row, poisoned in pairs]
        scratch = Path(path).with_name(Path(path).name + ".part")
        scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
        scratch.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> PoisonKey:
        """Read what :meth:`save` wrote; a malformed line raises ``DataError`` with its number."""
        rows, answers = [], []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                row, poisoned = entry["row"], entry["poisoned"]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f'{path}:{number}: a key line is {{"row": N, "poisoned": 0 or 1}}') from error
            if type(row) is not int or poisoned not in (0, 1):
                raise DataError(
                    f"{path}:{number}: row must be an integer and poisoned 0 or 1, got {line.strip()[:80]}"
                )
            rows.append(row)
            answers.append(bool(poisoned))
        if not rows:
            raise DataError(f"{path}: an empty key")
        return cls(np.array(rows, np.int64), np.array(answers, bool))
