"""The perturbation of RAP: a word put before the text, whose embedding is ours and not the model's.

The word is a place in the sequence; which token id stands there does not matter, because the vector looked up at that
one place is exchanged, by a hook on the word embeddings. So no weight of the model ever changes and no word of the
vocabulary is given up for it: not even the attacker's trigger can be hit. The hook is on a view of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asepsis.core.views import shared_view
from asepsis.errors import ModelError
from asepsis.inference.detectors._answers import by_length, pad_token, padded
from asepsis.inference.detectors._checks import at_least

_MOST_LOOKED_UP = 4096


@contextlib.contextmanager
def exchanged(words: nn.Module, rows: Tensor, place: int) -> Iterator[None]:
    """Give out ``rows`` [B, D] for what the embedding module looks up at ``place`` of each sequence."""

    def exchange(_: nn.Module, __: Any, vectors: Tensor) -> Tensor:
        own = rows.to(vectors.dtype)[:, None]
        return torch.cat((vectors[:, :place], own, vectors[:, place + 1 :]), dim=1)

    handle = words.register_forward_hook(exchange)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class Prober:
    """A classifier, asked with and without the word.

    Attributes
    ----------
    model, tokenizer
        The model is a view with modules of its own, see :func:`asepsis.core.views.shared_view`.
    place : int
        Where the word goes: after the special tokens that begin a sequence.
    max_length : int
        Tokens read, the word included.
    batch_size : int
        Rows in one forward pass.
    """

    model: Any
    tokenizer: Any
    place: int
    _id: int
    max_length: int
    batch_size: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, max_length: int, batch_size: int) -> Prober:
        """Make a view of the model and find the place; a tokenizer that does not keep a text together raises ``ModelError``."""
        at_least(4, max_length=max_length)  # the word, one token of the text and two special ones
        at_least(1, batch_size=batch_size)
        bare = list(tokenizer("a", add_special_tokens=False).input_ids)
        whole = list(tokenizer("a").input_ids)
        places = [at for at in range(len(whole)) if bare and whole[at : at + len(bare)] == bare]
        if not places:
            raise ModelError(
                f"the tokenizer turns 'a' into {bare} alone and into {whole} with special tokens: RAP finds no place for its "
                "word there"
            )
        pad_token(tokenizer)
        return cls(
            model=shared_view(model),
            tokenizer=tokenizer,
            place=places[0],
            _id=bare[0],
            max_length=max_length,
            batch_size=batch_size,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def words(self) -> nn.Module:
        """The module that looks up word vectors."""
        outer = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        module = outer.get_input_embeddings()
        if not isinstance(module, nn.Module):
            raise ModelError(f"{type(outer).__name__} has no word embeddings for RAP to put a word into")
        return module

    def start(self) -> Tensor:
        """Return a vector [D] to train from, fp32: the mean direction of all word vectors, of their median length."""
        words: Any = self.words
        n = len(words.weight)
        ids = torch.arange(0, n, max(1, n // _MOST_LOOKED_UP), device=self.device)
        with torch.no_grad():
            found = words(ids[None])[0].float()  # as looked up: some models scale
        mean: Tensor = found.mean(dim=0)
        size: Tensor = found.norm(dim=1).median() / mean.norm().clamp(min=1e-8)
        return mean * size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids, one short of ``max_length``, so that the same are read with the word and without."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_length - 1).input_ids
        return [list(row) for row in ids]

    def probabilities(self, rows: Sequence[Sequence[int]], vectors: Tensor | None = None) -> Tensor:
        """Return class probabilities [N, C], fp64 on the CPU; with each row's word where its vector [N, D] is given."""
        done: list[tuple[NDArray[np.int64], Tensor]] = []
        for at in by_length(rows, self.batch_size):
            part = [rows[i] for i in at]
            answer = self._ask(part) if vectors is None else self.with_word(part, vectors[at])
            done.append((at, answer.cpu()))
        out = torch.empty(len(rows), done[0][1].shape[1], dtype=torch.float64)
        for at, part_of in done:
            out[at] = part_of
        return out

    def with_word(self, rows: Sequence[Sequence[int]], vectors: Tensor) -> Tensor:
        """Return class probabilities [B, C], fp64, with the word of each row's vector [B, D] before its text."""
        with exchanged(self.words, vectors.to(self.device), self.place):
            return self._ask([[*r[: self.place], self._id, *r[self.place :]] for r in rows])

    def _ask(self, rows: Sequence[Sequence[int]]) -> Tensor:
        logits = self.model(**padded(rows, pad_token(self.tokenizer), self.device)).logits
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ModelError("RAP is for classifiers: the model's logits are not [rows, two classes or more]")
        if not torch.isfinite(logits).all():
            raise ModelError("the model's logits are not finite; load it in float32 or bfloat16")
        probabilities: Tensor = logits.double().softmax(dim=1)
        return probabilities
