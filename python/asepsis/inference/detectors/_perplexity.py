"""How well a causal LM expects a text: mean negative log-likelihood per token, many texts per forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asepsis.errors import ModelError
from asepsis.inference.detectors._answers import evaluating, pad_token, padded
from asepsis.kernels import sample_loss
from asepsis.training.collate import IGNORED
from asepsis.training.forward import Precision, autocast, full_precision_head, resolve_precision
from asepsis.training.models import room


class PerplexityScorer:
    """Log-perplexity under a causal LM.

    Every text starts after the LM's own beginning-of-text token (its end token where it has no other), so the first
    word is judged as well.

    Parameters
    ----------
    model, tokenizer
        A causal LM, in any mode; it is left in that mode.
    max_tokens : int
        Tokens read at once, the start token included. The rest of a longer text is read in stretches that begin half as many
        tokens earlier, so that each token but the first ones is judged by what stands before it. The model's own limit, where
        smaller, holds.
    batch_tokens : int
        Most tokens of one forward pass, padding included; a single longer text goes alone.
    precision : {"fp32", "bf16", "auto"}
        Of matrix products; the last one, over the vocabulary, is in that of its own weights. ``"auto"`` is bf16 where the device multiplies it natively.

    Raises
    ------
    ModelError
        The tokenizer has no token to start from or none to pad with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_tokens: int = 512,
        batch_tokens: int = 1024,
        precision: Precision = "fp32",
    ) -> None:
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        if start is None:
            raise ModelError(
                "the language model's tokenizer has neither a bos nor an eos token to begin a text with; choose another"
            )
        pad_token(tokenizer)
        self.model, self.tokenizer, self._start = model, tokenizer, int(start)
        self.max_tokens = room(model, max_tokens)
        self.batch_tokens = batch_tokens
        self.precision = precision

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, nothing cut off and nothing added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def log_perplexity(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return mean nats per token of all of a text, float64 [N]; 0 for a text of no token.

        Raises
        ------
        ModelError
            The model is no causal LM or its likelihoods are not finite.
        """
        ids, room = [self.ids(text) for text in texts], self.max_tokens - 1
        new = max(1, room // 2)
        known = room - new
        first = [(text, 0, 0) for text in range(len(ids))]
        further = [(text, at - known, known) for text, *_ in first for at in range(room, len(ids[text]), new)]
        totals, counts = np.zeros(len(ids), np.float64), np.zeros(len(ids), np.float64)
        device = next(self.model.parameters()).device
        with evaluating(self.model), self._products(device):
            for stretches in (first, further):  # apart: a long text moves no other one to another batch
                rows = [[self._start, *ids[text][at : at + room]] for text, at, _ in stretches]
                for batch in self._batches(rows):
                    inputs = padded([rows[i] for i in batch], pad_token(self.tokenizer), device)
                    total, count = self._nats(inputs, [stretches[i][2] for i in batch])
                    if not torch.isfinite(total).all():
                        raise ModelError(
                            "the language model's likelihoods are not finite; load it in float32 or bfloat16"
                        )
                    of = [stretches[i][0] for i in batch]
                    np.add.at(totals, of, total.double().cpu().numpy())
                    np.add.at(counts, of, count.cpu().numpy())
        return np.asarray(totals / np.maximum(counts, 1), np.float64)

    @contextlib.contextmanager
    def _products(self, device: torch.device) -> Iterator[None]:
        dtype = resolve_precision(self.precision, device)
        if dtype == torch.float32:
            yield
            return
        with autocast(device, dtype), full_precision_head(self.model):
            yield

    def _nats(self, inputs: dict[str, Tensor], known: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return nats [B] and tokens [B] of texts, without the first ``known`` tokens of each."""
        logits = self.model(**inputs).logits
        if logits.ndim != 3:
            raise ModelError("the language model's logits are not [rows, tokens, vocabulary]")
        targets = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)[:, 1:]
        for row, n in enumerate(known):
            targets[row, :n] = IGNORED
        return sample_loss(logits[:, :-1], targets)

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        batch: list[int] = []
        for at in np.argsort([len(row) for row in rows], kind="stable").tolist():
            if len(rows[at]) < 2:
                continue  # nothing but the start token: no target
            if batch and len(rows[at]) * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch
