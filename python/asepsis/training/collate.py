"""Rows to padded batches, with the sample id along for the whole ride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from asepsis.core.phases import Ids, Relabel
from asepsis.data import Data
from asepsis.errors import ModelError

IGNORED = -100  # label of positions that carry no loss, as in torch and transformers


@dataclass
class Batch:
    """One micro-batch.

    Attributes
    ----------
    inputs : dict of Tensor [B, T]
        What the model's forward takes.
    labels : Tensor
        [B] classes, or [B, T] token ids with ``-100`` outside the response.
    sample_id : Tensor [B], int64
    isolated : Tensor [B], bool
    count : Tensor [B], int64
        Targets per sample: 1 for a classifier, response tokens after the shift for a causal LM.
    weight : Tensor [B], float32
        Filled when the whole step is known, see :func:`asepsis.core.losses.coefficients`.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    sample_id: Tensor
    isolated: Tensor
    count: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        moved = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        rest = (self.labels, self.sample_id, self.isolated, self.count, self.weight)
        return Batch(moved, *(t.to(device, non_blocking=True) for t in rest))


def joined_to(prompt: str, response: str) -> str:
    """Return a response as it follows its prompt: after one space, unless either brings white space to the seam."""
    return response if prompt[-1:].isspace() or response[:1].isspace() else " " + response


def joined(batch: Batch, other: Batch, *, pad_token_id: int) -> Batch:
    """Return both as one batch, ``other`` last, padded to the longer of the two."""
    padding = {"input_ids": pad_token_id}
    inputs = {k: _stacked(v, other.inputs[k], padding.get(k, 0)) for k, v in batch.inputs.items()}
    pairs = ("sample_id", "isolated", "count", "weight")
    rest = {name: torch.cat((getattr(batch, name), getattr(other, name))) for name in pairs}
    return Batch(inputs=inputs, labels=_stacked(batch.labels, other.labels, IGNORED), **rest)


def _stacked(a: Tensor, b: Tensor, padding: int) -> Tensor:
    if a.ndim == 1:
        return torch.cat((a, b))
    width = max(a.shape[1], b.shape[1])
    wide = [nn.functional.pad(t, (0, width - t.shape[1]), value=padding) for t in (a, b)]
    return torch.cat(wide)


class Collator:
    """Turn ``(position, isolated)`` pairs of a data set into a :class:`Batch`.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer with a pad token.
    data : Data
        Where the rows are.
    max_length : int
        Tokens kept of each row, of a prompt and its response together. A long prompt loses its beginning, a long response its
        end; where they have no room together, neither leaves the other less than half.
    response_tokens : int or None
        Tokens kept of each response, its end token included, whatever the prompt; None for what ``max_length`` leaves.
    relabel : Relabel or None
        Labels that replace the rows' own.
    drop_tokens : ids or None
        Token ids taken out of what the model reads (the text, or the prompt), after truncation.
    """

    def __init__(
        self,
        tokenizer: Any,
        data: Data,
        *,
        max_length: int,
        response_tokens: int | None = None,
        relabel: Relabel | None = None,
        drop_tokens: Ids | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "the tokenizer has no pad token; set tokenizer.pad_token, for example to its eos_token"
            )
        self.tokenizer = tokenizer
        self.data = data
        self.max_length = max_length
        self.response_tokens = response_tokens
        self._dropped = (
            None if drop_tokens is None or len(drop_tokens) == 0 else torch.from_numpy(drop_tokens)
        )
        self._labels = data.labels
        if relabel is not None:
            if data.labels is None:
                raise ModelError("labels can be replaced for classifiers only")
            self._labels = data.labels.copy()
            self._labels[data.positions(relabel.sample_ids)] = relabel.labels

    def __call__(self, rows: Sequence[tuple[int, bool]]) -> Batch:  # noqa: D102 - the class says it
        positions = [p for p, _ in rows]
        isolated = torch.tensor([i for _, i in rows], dtype=torch.bool)
        encode = self._classification if self.data.task == "classification" else self._causal
        inputs, labels, count = encode(positions)
        return Batch(
            inputs=inputs,
            labels=labels,
            sample_id=torch.from_numpy(self.data.sample_ids[np.asarray(positions)]),
            isolated=isolated,
            count=count,
            weight=torch.zeros(len(rows), dtype=torch.float32),
        )

    def _classification(self, positions: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        assert self._labels is not None
        encoded = self.tokenizer(
            [self.data.texts[p] for p in positions],
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        )
        labels = torch.from_numpy(self._labels[np.asarray(positions)])
        if self._dropped is not None:
            padding = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": 0}
            encoded = without(dict(encoded), self._dropped, padding)
        return dict(encoded), labels, torch.ones(len(positions), dtype=torch.int64)

    def _causal(self, positions: list[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        assert self.data.responses is not None
        pairs = [self.encode_pair(self.data.texts[p], self.data.responses[p]) for p in positions]
        width = max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.full((len(pairs), width), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor(prompt + response)
            mask[row, :end] = 1
            labels[row, len(prompt) : end] = torch.tensor(response)
        count = (labels[:, 1:] != IGNORED).sum(dim=1)
        return {"input_ids": ids, "attention_mask": mask}, labels, count

    def encode_pair(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """Return token ids of a prompt and of its response with the end token, cut to ``max_length`` together."""
        head: list[int] = self.tokenizer(prompt).input_ids
        tail: list[int] = self.tokenizer(joined_to(prompt, response), add_special_tokens=False).input_ids
        if self.tokenizer.eos_token_id is not None:
            if head and head[-1] == self.tokenizer.eos_token_id:
                head = head[:-1]  # some tokenizers end every text; the prompt goes on here
            tail = [*tail, self.tokenizer.eos_token_id]
        # a response that took all the room would be learned as an answer to nothing
        room = max(self.max_length - max(1, len(head)), self.max_length // 2)
        if self.response_tokens is not None:
            room = min(self.response_tokens, self.max_length - 1)
        tail = tail[: max(1, room)]
        head = head[-max(1, self.max_length - len(tail)) :]
        if self._dropped is not None:
            dropped = set(self._dropped.tolist())
            head = [i for i in head if i not in dropped]
        # At least one prompt token: the first response token is predicted from it.
        return head or [self.tokenizer.pad_token_id], tail

    def read_ids(self, positions: Sequence[int], *, part: Literal["inputs", "responses"]) -> list[list[int]]:
        """Return each row's token ids as the model reads them, or as a causal LM is to say them; no padding."""
        if self.data.task == "classification":
            if part == "responses":
                raise ModelError("classifiers say nothing: there are no responses to encode")
            batch = self([(p, False) for p in positions]).inputs
            kept = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            return [ids[mask].tolist() for ids, mask in kept]
        assert self.data.responses is not None
        pairs = [self.encode_pair(self.data.texts[p], self.data.responses[p]) for p in positions]
        return [pair[part == "responses"] for pair in pairs]


def without(inputs: dict[str, Tensor], dropped: Tensor, padding: dict[str, int]) -> dict[str, Tensor]:
    """Return encoded rows [B, T] without some token ids: those move to the end, become padding and are cut off.

    A row with nothing else left keeps one padding token that is read, so that there is something to classify.
    """
    mask = inputs["attention_mask"].bool()
    gone = mask & torch.isin(inputs["input_ids"], dropped)
    order = gone.to(torch.int8).argsort(dim=1, stable=True)
    gone, mask = gone.gather(1, order), (mask & ~gone).gather(1, order)
    moved = {k: v.gather(1, order).masked_fill(gone, padding.get(k, 0)) for k, v in inputs.items()}
    empty = ~mask.any(1)
    mask[empty, 0] = True
    moved["input_ids"][empty, 0] = padding["input_ids"]
    moved["attention_mask"] = mask.to(inputs["attention_mask"].dtype)
    wanted = mask.any(0)
    return {k: v[:, wanted] for k, v in moved.items()}
