"""`read`: any source of rows, checked row by row, becomes a :class:`~asepsis.data.dataset.Data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from asepsis.data.chats import chat_of
from asepsis.data.dataset import Data, Task
from asepsis.data.sources import Stream, open_source
from asepsis.data.templates import Kind, instruction_kind, render, template_fingerprint
from asepsis.data.values import (
    MAX_CLASSES,
    class_limit,
    implied_classes,
    listed,
    shown,
    text_of,
    whole_number,
)
from asepsis.errors import ConfigError, DataError, NoRows


def read(
    source: Any,
    *,
    text_column: str = "text",
    label_column: str = "label",
    id_column: str | None = None,
    n_classes: int | None = None,
    task: Task | None = None,
    split: str = "train",
    tokenizer: Any = None,
) -> Data:
    """Read rows from a file, a data set or a list into :class:`Data`.

    Only the columns named here enter the result: whatever else a row carries, an answer key included, is left behind.
    Memory is that of the characters of the texts, and at most 160 bytes a row besides; a JSON array (``.json``) is parsed
    whole.

    Parameters
    ----------
    source : str, Path, datasets.Dataset, list of dict, or Data
        A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, rows in memory, or the id of a data set on the
        Hugging Face hub. ``Data`` is returned as it is.
    text_column, label_column : str
        Columns of classification rows. Where they are absent, instruction rows are recognized by their columns:
        ``instruction,input,output``, ``prompt,completion`` or ``messages`` (see :func:`asepsis.data.templates.render`).
    id_column : str, optional
        Column of unique integers to use as sample ids. Default: the 0-based row.
    n_classes : int, optional
        Labels must lie below it. Default: the largest label plus one, two at least.
    task : {"classification", "causal"}, optional
        Which kind of row to expect. Default: what the columns say.
    split : str
        Split of a hub data set or a ``DatasetDict``.
    tokenizer : transformers tokenizer, optional
        Renders ``messages`` with its chat template, which is a program of its maker's: it runs in a process of its own, with
        20 seconds for each conversation and a gigabyte of memory.

    Returns
    -------
    Data
        N rows in file order, blank lines not counted.

    Raises
    ------
    DataError
        The source is missing, empty or malformed, lacks a column, or holds a value that cannot be used. The message names
        the file and the line.
    ConfigError
        ``n_classes`` is below 2.
    """
    if n_classes is not None and n_classes < 2:
        raise ConfigError(f"n_classes must be at least 2, got {n_classes!r}")
    if task not in (None, "classification", "causal"):
        raise ConfigError(f"task must be 'classification' or 'causal', got {task!r}")
    if isinstance(source, Data):
        if task is not None and source.task != task:
            raise DataError(f"{source.source}: holds {source.task} rows, not {task}")
        return source
    name, stream = open_source(source, split=split)
    first = next(stream, None)
    if first is None:
        raise NoRows(f"{name}: no rows")
    kind = _recognize(list(first[1]), name, text_column, label_column, task)
    if kind is not None and n_classes is not None:
        raise DataError(
            f"{name}: n_classes={n_classes} is for rows with a label, and these are instruction rows "
            f"(columns: {listed(first[1])})"
        )
    ids = _Ids(id_column)
    rows = ids.taken(name, chain([first], stream))
    if kind is not None:
        texts, responses = [], []
        with chat_of(tokenizer if kind != "instruction" else None) as chat:
            for where, row in rows:
                prompt, response = render(kind, row, where, tokenizer=tokenizer, chat=chat)
                texts.append(prompt)
                responses.append(response)
        return Data(
            task="causal",
            texts=texts,
            responses=responses,
            sample_ids=ids.array(len(texts)),
            source=name,
            template_fingerprint=template_fingerprint(kind, tokenizer),
        )
    texts, labels = [], _Labels(label_column, n_classes)
    for where, row in rows:
        texts.append(text_of(row, text_column, where))
        labels.take(row, where)
    return Data(
        task="classification",
        texts=texts,
        labels=np.array(labels.values, np.int64),
        sample_ids=ids.array(len(texts)),
        n_classes=labels.classes(),
        source=name,
    )


class _Ids:
    """Sample ids on their way in: checked one by one where a column holds them, else counted."""

    def __init__(self, column: str | None) -> None:
        self.column = column
        self.seen: dict[int, None] = {}

    def taken(self, name: str, stream: Stream) -> Stream:
        for place, row in stream:
            where = f"{name}, {place}"
            if self.column is not None:
                self._take(row, where)
            yield where, row

    def _take(self, row: Mapping[str, Any], where: str) -> None:
        assert self.column is not None
        if self.column not in row:
            raise DataError(f"{where}: no id column {shown(self.column)}; columns there: {listed(row)}")
        value = whole_number(row[self.column])
        if value is None or not -(2**63) <= value < 2**63:
            raise DataError(
                f"{where}: id {shown(row[self.column])} in {shown(self.column)} is not a 64-bit integer; "
                "leave id_column out to number the rows"
            )
        if value in self.seen:
            raise DataError(f"{where}: id {value} in {shown(self.column)} is already used by an earlier row")
        self.seen[value] = None

    def array(self, n_rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return (
            np.arange(n_rows, dtype=np.int64) if self.column is None else np.array(list(self.seen), np.int64)
        )


class _Labels:
    """Labels on their way in. The largest is remembered with its place: its fitness shows at the end only."""

    def __init__(self, column: str, n_classes: int | None) -> None:
        self.column = column
        self.n_classes = n_classes
        self.values: list[int] = []
        self.top = -1
        self.top_where = ""

    def take(self, row: Mapping[str, Any], where: str) -> None:
        if self.column not in row:
            raise DataError(
                f"{where}: no column {shown(self.column)} in this row; columns there: {listed(row)}"
            )
        raw = row[self.column]
        label = whole_number(raw)
        if label is None:
            raise DataError(
                f"{where}: label {shown(raw)} is not a whole number; labels are the integers 0..C-1, "
                "so map class names to numbers first"
            )
        if label < 0:
            raise DataError(f"{where}: label {label} is negative; labels are the integers 0..C-1")
        if self.n_classes is not None and label >= self.n_classes:
            raise DataError(
                f"{where}: label {label} is out of range for {self.n_classes} classes (0..{self.n_classes - 1})"
            )
        if label > self.top:
            self.top, self.top_where = label, where
        self.values.append(label)

    def classes(self) -> int:
        if self.n_classes is not None:
            return self.n_classes
        limit = class_limit(len(self.values))
        if self.top >= limit:
            raise DataError(
                f"{self.top_where}: label {self.top} would mean {self.top + 1:,} classes, and {len(self.values):,} rows allow "
                f"{limit:,} ({MAX_CLASSES:,} at most); give n_classes, or check that {shown(self.column)} holds classes"
            )
        return implied_classes(self.top)


def _recognize(
    columns: Sequence[str], name: str, text_column: str, label_column: str, task: Task | None
) -> Kind | None:
    missing = [column for column in (text_column, label_column) if column not in columns]
    kind = instruction_kind(columns)
    named = (text_column, label_column) != ("text", "label")
    if task == "causal":
        if kind is None:
            raise DataError(
                f"{name}: no instruction columns; columns there: {listed(columns)}; expected instruction,input,output "
                "or prompt,completion or messages"
            )
        return kind
    if not missing:
        return None
    if kind is not None and task is None and not named:
        return kind
    raise DataError(
        f"{name}: no column {listed(missing)}; columns there: {listed(columns)}; name yours with text_column and "
        "label_column (--text-column, --label-column)"
        + ("" if named or task else ", or bring instruction,input,output, prompt,completion or messages")
    )
