"""Rows as a trainer's owner tokenized them: known by id, cut and relabeled for a request, batched by the owner's collator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from asepsis.core.phases import Ids, Relabel
from asepsis.data import Data, Task
from asepsis.errors import ConfigError, DataError, ModelError
from asepsis.training.collate import IGNORED, Batch, Collator

ID = "sample_id"


def with_ids(dataset: Any) -> Any:
    """Return a dataset with a column of ids, where it is one of ``datasets`` without; others are known by position."""
    if not hasattr(dataset, "add_column") or ID in (dataset.column_names or ()):
        return dataset
    return dataset.add_column(ID, np.arange(len(dataset)))


def task_of(model: nn.Module) -> tuple[Task, int | None]:
    """Return what a transformers (or peft) model is for, and its number of classes.

    Raises
    ------
    ModelError
        It is neither a text classifier nor a causal language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    outer: Any = model
    plain: Any = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    kinds = [kind.__name__ for kind in type(plain).__mro__]
    if any(name.endswith("ForSequenceClassification") for name in kinds):
        if plain.config.num_labels < 2 or plain.config.problem_type not in (
            None,
            "single_label_classification",
        ):
            raise ModelError(
                "a defense needs one class a row: regression and several labels a row are not supported"
            )
        return "classification", int(plain.config.num_labels)
    if set(kinds) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "causal", None
    raise ModelError(
        f"{type(plain).__name__} is neither a text classifier nor a causal language model; defenses act on these two"
    )


class OwnRows:
    """A dataset that is tokenized already, and the collator that goes with it.

    Parameters
    ----------
    dataset
        Rows with ``input_ids`` and, for a classifier, ``label`` or ``labels``; of ``datasets``, or any map-style dataset.
    collate : callable
        Makes a batch of a list of rows, with ``labels``.
    columns : sequence of str or None
        What the collator is handed of a row; None means everything but the id.
    tokenizer
        Says what rows read, for :class:`Data`.
    task, n_classes
        See :func:`task_of`.
    source : str
        What the rows are called.

    Raises
    ------
    DataError
        The dataset has no length or no ``input_ids``, lost its ids, or a row has no class.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[dict[str, Any]]], Any],
        columns: Sequence[str] | None,
        tokenizer: Any,
        *,
        task: Task,
        n_classes: int | None,
        source: str,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{source}: a defense scores rows again and again; a stream of rows cannot be defended"
            )
        if hasattr(dataset, "column_names") and ID not in dataset.column_names:
            raise DataError(
                f"{source} lost its {ID} column on the way: it has {', '.join(dataset.column_names)}"
            )
        self.dataset, self.collate, self.columns = dataset, collate, columns
        self.tokenizer, self.task = tokenizer, task
        ids, labels, texts, responses = [], [], [], []
        for at in range(len(dataset)):
            row = dataset[at]
            if "input_ids" not in row:
                raise DataError(
                    f"{source}: row {at} has no input_ids but {', '.join(row)}; tokenize the rows"
                )
            ids.append(int(row.get(ID, at)))
            if task == "classification":
                labels.append(_class_of(row, f"{source}: row {at}"))
            texts.append(self._part(row, "inputs"))
            responses.append(self._part(row, "responses") if task == "causal" else [])
        self._at = {sample_id: at for at, sample_id in enumerate(ids)}
        decode = tokenizer.batch_decode
        self.data = Data(
            task=task,
            texts=decode(texts, skip_special_tokens=True),
            labels=np.array(labels) if task == "classification" else None,
            responses=decode(responses, skip_special_tokens=True) if task == "causal" else None,
            sample_ids=np.array(ids),
            n_classes=n_classes,
            source=source,
        )

    def row(self, sample_id: int) -> dict[str, Any]:
        """Return a row by its id."""
        found: dict[str, Any] = self.dataset[self._at[sample_id]]
        return found

    def _part(self, row: dict[str, Any], part: Literal["inputs", "responses"]) -> list[int]:
        """Return the ids a classifier reads, or those of a causal LM's prompt or response."""
        ids = np.asarray(row["input_ids"])
        if self.task == "classification":
            return [int(i) for i in ids[np.asarray(row.get("attention_mask", np.ones_like(ids))) == 1]]
        said = np.asarray(row.get("labels", ids)) != IGNORED
        return [int(i) for i in ids[said if part == "responses" else ~said]]


class OwnCollator(Collator):
    """Turns ``(position, isolated)`` pairs into a batch as :class:`Collator` does, by way of the owner's collator."""

    def __init__(
        self, rows: OwnRows, data: Data, *, relabel: Relabel | None = None, drop_tokens: Ids | None = None
    ) -> None:
        super().__init__(rows.tokenizer, data, max_length=1, relabel=relabel, drop_tokens=drop_tokens)
        self.rows = rows

    def __call__(self, rows: Sequence[tuple[int, bool]]) -> Batch:  # noqa: D102 - the class says it
        positions = np.array([p for p, _ in rows])
        made = dict(self.rows.collate([self._feature(int(p)) for p in positions]))
        labels = made.pop("labels", None)
        odd = [name for name, value in made.items() if not isinstance(value, Tensor)]
        if odd or not isinstance(labels, Tensor) or len(labels) != len(rows):
            raise ConfigError(
                f"the data collator made labels of {None if labels is None else tuple(labels.shape)} from {len(rows)} rows"
                f"{' and ' + ', '.join(odd) if odd else ''}: a defense needs one line of tensors a row. Turn off packing and "
                "padding-free batches"
            )
        count = torch.ones(len(rows), dtype=torch.int64)
        if labels.ndim > 1:
            count = (labels[:, 1:] != IGNORED).sum(dim=1)
        return Batch(
            inputs=made,
            labels=labels,
            sample_id=torch.from_numpy(self.data.sample_ids[positions]),
            isolated=torch.tensor([i for _, i in rows], dtype=torch.bool),
            count=count,
            weight=torch.zeros(len(rows), dtype=torch.float32),
        )

    def read_ids(self, positions: Sequence[int], *, part: Literal["inputs", "responses"]) -> list[list[int]]:
        """See :meth:`Collator.read_ids`."""
        if self.data.task == "classification" and part == "responses":
            raise ModelError("classifiers say nothing: there are no responses to encode")
        return [self.rows._part(self.rows.row(int(self.data.sample_ids[p])), part) for p in positions]

    def _feature(self, position: int) -> dict[str, Any]:
        whole = self.rows.row(int(self.data.sample_ids[position]))
        row = {
            k: v
            for k, v in whole.items()
            if k != ID and (self.rows.columns is None or k in self.rows.columns)
        }
        if self._labels is not None:
            row[_label_name(row)] = int(self._labels[position])
        return row if self._dropped is None else self._without(row, self._dropped.numpy())

    def _without(self, row: dict[str, Any], dropped: Ids) -> dict[str, Any]:
        """Return a row without some token ids of what is read; a row with nothing else left keeps its first token."""
        ids = np.asarray(row["input_ids"])
        keep = ~np.isin(ids, dropped)
        if self.data.task == "causal":
            keep |= np.asarray(row.get("labels", ids)) != IGNORED
        keep[0] |= not keep.any()
        return {
            name: np.asarray(value)[keep].tolist() if np.shape(value) == ids.shape else value
            for name, value in row.items()
        }


def _label_name(row: dict[str, Any]) -> str:
    return "labels" if "labels" in row else "label"


def _class_of(row: dict[str, Any], where: str) -> int:
    value = row.get(_label_name(row))
    if value is None or np.ndim(value) or int(value) != value:
        raise DataError(f"{where} has no class in label or labels, but {value!r}")
    return int(value)
