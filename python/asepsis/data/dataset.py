"""Rows with stable ids: what every other layer trains on, scores and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.data.values import class_limit, implied_classes
from asepsis.errors import DataError, NoRows

Task = Literal["classification", "causal"]


# eq=False: comparing arrays field by field has no truth value; `fingerprint` compares content.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Data:
    """A data set held as columns, each row under a stable ``sample_id``.

    Attributes
    ----------
    task : {"classification", "causal"}
        Whether rows carry class labels or responses.
    texts : sequence of str, length N
        The text to classify, or the prompt exactly as the model will see it.
    labels : ndarray of int64 [N], or None
        Class of each row in ``[0, n_classes)``; None for causal data.
    responses : sequence of str, length N, or None
        The text to be learned after the prompt; None for classification.
    sample_ids : ndarray of int64 [N]
        Unique, kept through shuffling, selection and training. By default the 0-based row of the file.
    n_classes : int or None
        Number of classes; where not given, the largest label plus one, two at least. None for causal data.
    source : str
        Where the rows came from, for messages and the manifest.
    template_fingerprint : str or None
        SHA-256 of the template that rendered the prompts; None where texts stand as they came.

    Raises
    ------
    DataError
        There are no rows, columns differ in length, labels are not integers in ``[0, n_classes)``, ids repeat.
    """

    task: Task
    texts: Sequence[str]
    labels: NDArray[np.int64] | None = None
    responses: Sequence[str] | None = None
    sample_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    n_classes: int | None = None
    source: str = "memory"
    template_fingerprint: str | None = None

    def __post_init__(self) -> None:
        n = len(self.texts)
        if n == 0:
            raise NoRows(f"{self.source}: no rows")
        if self.task not in ("classification", "causal"):
            raise DataError(f"{self.source}: task must be 'classification' or 'causal', got {self.task!r}")
        ids = (
            self._integers("sample_ids", self.sample_ids)
            if len(self.sample_ids)
            else np.arange(n, dtype=np.int64)
        )
        object.__setattr__(self, "sample_ids", ids)
        if self.labels is not None:
            object.__setattr__(self, "labels", self._integers("labels", self.labels))
        answers = self.labels if self.task == "classification" else self.responses
        if answers is None or len(answers) != n or len(self.sample_ids) != n:
            raise DataError(
                f"{self.source}: columns differ in length or the answer column of {self.task} is missing"
            )
        if self.task == "classification" and self.labels is not None:
            self._settle_classes(self.labels)
        if not np.all(np.diff(self._order_of_ids[0]) > 0):
            raise DataError(f"{self.source}: duplicate sample ids")

    def _integers(self, name: str, values: object) -> NDArray[np.int64]:
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"{self.source}: {name} must be one integer a row, got {array.dtype} of shape {array.shape}"
            )
        return array.astype(np.int64, copy=False)

    def _settle_classes(self, labels: NDArray[np.int64]) -> None:
        low, top = int(labels.min()), int(labels.max())
        limit = class_limit(len(labels)) if self.n_classes is None else self.n_classes
        if low < 0 or top >= limit:
            advice = "; give n_classes if there are that many" if self.n_classes is None and low >= 0 else ""
            raise DataError(f"{self.source}: labels must lie in 0..{limit - 1}, got {low}..{top}{advice}")
        if self.n_classes is None:
            object.__setattr__(self, "n_classes", implied_classes(top))

    def __repr__(self) -> str:
        classes = "" if self.n_classes is None else f", n_classes={self.n_classes}"
        return f"Data({self.task}, {len(self):,} rows{classes}, source={self.source!r})"

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _order_of_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.sample_ids, kind="stable")
        return self.sample_ids[order], order

    def positions(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of each id, in the order given; an unknown id raises ``DataError``."""
        ids = np.asarray(sample_ids, np.int64)
        ordered, order = self._order_of_ids
        at = np.searchsorted(ordered, ids)
        found = at < len(ordered)
        if not (found.all() and np.array_equal(ordered[at], ids)):
            raise DataError(f"{self.source}: sample ids not in this data set")
        return order[at]

    def select(self, positions: NDArray[np.int64] | Sequence[int]) -> Data:
        """Return the rows at these positions, ids kept."""
        at = np.asarray(positions, np.int64)
        return replace(
            self,
            texts=[self.texts[i] for i in at],
            labels=None if self.labels is None else self.labels[at],
            responses=None if self.responses is None else [self.responses[i] for i in at],
            sample_ids=self.sample_ids[at],
        )

    def split(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ``(given, rest)`` as ids, ``rest`` in row order."""
        inside = np.zeros(len(self), bool)
        inside[self.positions(sample_ids)] = True
        return np.asarray(sample_ids, np.int64), self.sample_ids[~inside]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over task, ids, texts and answers in row order: equal content, equal fingerprint."""
        digest = hashlib.sha256(f"asepsis-data-1 {self.task} {self.n_classes} {len(self)}\n".encode())
        digest.update(np.ascontiguousarray(self.sample_ids, "<i8").tobytes())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, "<i8").tobytes())
        for column in (self.texts, self.responses or ()):
            for text in column:
                raw = text.encode("utf-8", "surrogatepass")
                digest.update(len(raw).to_bytes(8, "little"))
                digest.update(raw)
        return digest.hexdigest()
