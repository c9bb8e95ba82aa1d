"""`read_inputs`: what a model is asked, and nothing else; rows need neither a label nor a response."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from asepsis.data.dataset import Data, Task
from asepsis.data.sources import open_source
from asepsis.data.templates import instruction_kind, prompt_kind, render_prompt, template_fingerprint
from asepsis.data.values import listed, shown, text_of
from asepsis.errors import DataError, NoRows


def read_inputs(
    source: Any, *, task: Task, n_classes: int | None = None, text_column: str = "text", split: str = "train"
) -> Data:
    """Read the texts that a model of a task is asked, from a source as :func:`asepsis.data.read` takes it.

    Prompts are rendered as :func:`asepsis.data.read` renders those it is trained on. A row may bring its label or response: it is
    not read.

    Parameters
    ----------
    task : {"classification", "causal"}
        What the model does. A causal one is asked ``instruction,input``, ``prompt`` or ``messages``, or a column of texts.
    n_classes : int, optional
        Classes of the model, for classification.
    text_column : str
        Column with the text. Where it is named, a causal model is asked that, whatever other columns there are.
    split : str
        Split of a hub data set or a ``DatasetDict``.

    Returns
    -------
    Data
        In file order; labels are 0 and responses empty.

    Raises
    ------
    DataError
        A row has no text to ask with; the message names the file and the line.
    """
    name, stream = open_source(source, split=split)
    first = next(stream, None)
    if first is None:
        raise NoRows(f"{name}: no rows")
    kind, columns = None, list(first[1])
    if task == "causal" and text_column == "text":
        # whole rows are read as they were trained on, though they may have a column of texts as well
        kind = instruction_kind(columns) or (None if text_column in columns else prompt_kind(columns))
    if kind is None and text_column not in columns:
        expected = "" if task == "classification" else "; expected it, or instruction, prompt or messages"
        raise DataError(f"{name}: no column {shown(text_column)}; columns there: {listed(columns)}{expected}")
    texts = [
        text_of(row, text_column, f"{name}, {place}", blank=True)
        if kind is None
        else render_prompt(kind, row, f"{name}, {place}")
        for place, row in chain([first], stream)
    ]
    if task == "classification":
        labels = np.zeros(len(texts), np.int64)
        return Data(task=task, texts=texts, labels=labels, n_classes=n_classes, source=name)
    template = None if kind is None else template_fingerprint(kind)
    return Data(
        task=task, texts=texts, responses=[""] * len(texts), source=name, template_fingerprint=template
    )
