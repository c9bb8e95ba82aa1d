"""What the guarded model answers to texts: logits over classes, over given words or over the next token, in fp64.

The model runs as it was loaded: its own precision, no autocast, dropout off, and afterwards in the mode it was in.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asepsis.data.dataset import Task
from asepsis.errors import ConfigError, ModelError
from asepsis.inference.detectors._checks import at_least
from asepsis.inference.lengths import token_counts
from asepsis.training.collate import joined_to
from asepsis.training.decode import judge_rows

Reduce = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and gradients too; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask`` [B, T], padded on the right.

    A row of no token at all, the empty text where no special tokens are added, reads one padding token.
    """
    filled = [row or [pad] for row in rows]
    ids = torch.full((len(filled), max(map(len, filled))), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(filled):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def pad_token(tokenizer: Any) -> int:
    """Return the id of the padding token, or raise ``ModelError``."""
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no pad token; set tokenizer.pad_token, for example to its eos_token"
        )
    return int(tokenizer.pad_token_id)


def by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield positions in batches of rows of like length, shortest first."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Asks a classifier for its classes, or a causal LM for given words or its next token.

    Attributes
    ----------
    model, tokenizer
    task : {"classification", "causal"}
    label_words : tuple of str
        Causal LMs: the answers told apart, each by the mean log-probability of its tokens. None: every token of the
        vocabulary.
    max_length : int
        Tokens read. A classifier reads the beginning of a longer text, a causal LM the end of a longer prompt.
    batch_size : int
    """

    model: Any
    tokenizer: Any
    task: Task
    label_words: tuple[str, ...] = ()
    max_length: int
    batch_size: int

    def __post_init__(self) -> None:
        at_least(1, max_length=self.max_length, batch_size=self.batch_size)
        pad_token(self.tokenizer)
        if self.label_words and self.task == "classification":
            raise ConfigError(
                "label_words are for causal LMs; a classifier has its classes: leave label_words empty"
            )
        if self.label_words:
            for end in ("", " "):
                self._words(end)

    def limits(self) -> dict[str, int]:
        """Return ``max_length`` and ``batch_size``, JSON-ready."""
        return {"max_length": self.max_length, "batch_size": self.batch_size}

    def read(self, texts: Sequence[str], reduce: Reduce) -> NDArray[np.float64]:
        """Return ``reduce(logits [B, C])``, one number a text, float64 [N]. ``C`` is the vocabulary without labels.

        Raises
        ------
        ModelError
            The model answers with other shapes, or with numbers that are not finite.
        """
        encode = self._classifier_ids if self.task == "classification" else self._prompt_ids
        rows = [encode(text) for text in texts]
        out = np.zeros(len(texts), np.float64)
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            for at in by_length(rows, self.batch_size):
                batch = [rows[i] for i in at]
                if self.label_words:
                    logits = self._judge(batch, [texts[i] for i in at], device)
                elif self.task == "classification":
                    logits = self.model(**padded(batch, pad_token(self.tokenizer), device)).logits
                    if logits.ndim != 2 or logits.shape[1] < 2:
                        raise ModelError(
                            "the model does not classify: its logits are not [rows, two classes or more]; for a causal "
                            "LM give rows with responses"
                        )
                else:
                    logits = self._next_token(padded(batch, pad_token(self.tokenizer), device))
                if not torch.isfinite(logits).all():
                    raise ModelError("the model's logits are not finite; load it in float32 or bfloat16")
                out[at] = reduce(logits.double()).cpu().numpy()
        return out

    def cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are longer than what is read of them, bool [N]."""
        counts = token_counts(self.tokenizer, texts, prompts=self.task == "causal")
        ends = [" " if text[-1:].isspace() else "" for text in texts]
        room = {end: self._room(self._words(end)) if self.label_words else self.max_length for end in {*ends}}
        return counts > np.array([room[end] for end in ends])

    def _room(self, words: list[list[int]]) -> int:
        return max(1, self.max_length - max(map(len, words)) + 1)  # a word's tokens take positions too

    def _classifier_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=self.max_length).input_ids
        return ids

    def _prompt_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text).input_ids
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers end every text; the prompt goes on here
        return ids[-self.max_length :]

    def _next_token(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return logits [B, V] after each row's last token, computed at few positions where the model can."""
        last = inputs["attention_mask"].sum(dim=1) - 1
        outer: Any = self.model
        plain = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
        virtual = getattr(getattr(outer, "active_peft_config", None), "is_prompt_learning", False)
        if "logits_to_keep" in inspect.signature(plain.forward).parameters and not virtual:
            kept, place = torch.unique(last, return_inverse=True)
            logits: Tensor = self.model(**inputs, logits_to_keep=kept).logits
        else:
            logits = self.model(**inputs).logits
            # virtual tokens, where there are any, stand in front
            place = last + logits.shape[1] - inputs["input_ids"].shape[1]
        if logits.ndim != 3:
            raise ModelError("the model is no causal LM: its logits are not [rows, tokens, vocabulary]")
        return logits[torch.arange(len(place), device=logits.device), place]

    def _judge(self, rows: Sequence[Sequence[int]], texts: Sequence[str], device: torch.device) -> Tensor:
        """Return the mean log-probability of each word's tokens after each prompt [B, C]."""
        pad = pad_token(self.tokenizer)
        out = torch.empty(len(rows), len(self.label_words))
        for end in ("", " "):  # a word's tokens depend on whether the prompt ends in white space
            at = [i for i, text in enumerate(texts) if text[-1:].isspace() == (end == " ")]
            if at:
                words = self._words(end)
                room = self._room(words)
                prompts = [rows[i][-room:] or [pad] for i in at]
                judged = judge_rows(self.model, prompts, words, tokenizer=self.tokenizer, device=device)
                out[at] = torch.from_numpy(judged)
        return out

    def _words(self, end: str) -> list[list[int]]:
        after = [joined_to(end, word) for word in self.label_words]  # as in training
        encoded = [self.tokenizer(word, add_special_tokens=False).input_ids for word in after]
        if len(self.label_words) < 2 or not all(encoded):
            raise ConfigError(
                f"label_words must be two words or more, none of them empty, got {self.label_words!r}"
            )
        if len({tuple(ids) for ids in encoded}) < len(encoded):
            raise ConfigError(
                f"label_words are told apart by their tokens, and {self.label_words!r} have {encoded}"
            )
        return encoded


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of ``softmax(logits)`` in nats, [B, C] to [B]."""
    logs = torch.log_softmax(logits, dim=1)
    return -(logs.exp() * logs).sum(dim=1)
