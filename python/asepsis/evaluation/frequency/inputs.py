"""Probe rows through a model, without leaving a trace in its training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asepsis.data import Data
from asepsis.errors import ModelError
from asepsis.training.collate import Batch, Collator
from asepsis.training.models import room


@torch.no_grad()
def pooled_embeddings(
    model: nn.Module, tokenizer: Any, data: Data, *, max_length: int = 128, batch_size: int = 128
) -> Tensor:
    """Return each row's mean input embedding over its own tokens, float64 [N, D] on the CPU."""
    table = _embedding_layer(model)
    device = next(table.parameters()).device
    out: list[Tensor] = [torch.empty(0)] * len(data)
    with evaluating(model):
        for at, batch in batches(model, tokenizer, data, max_length, batch_size):
            ids = batch.inputs["input_ids"]
            mask = batch.inputs.get("attention_mask", ids != tokenizer.pad_token_id)
            vectors = table(ids.to(device)).double().cpu()
            kept = mask.unsqueeze(-1).double()
            pooled = (vectors * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
            for row, vector in zip(at.tolist(), pooled, strict=True):
                out[row] = vector
    return torch.stack(out)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and a borrowed random state; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def batches(
    model: nn.Module, tokenizer: Any, data: Data, max_length: int, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield positions and batch, rows of like length together."""
    collate = Collator(tokenizer, data, max_length=room(model, max_length))
    order = np.argsort([len(text) for text in data.texts], kind="stable")
    for start in range(0, len(order), batch_size):
        at = order[start : start + batch_size]
        yield at, collate([(int(p), False) for p in at])


def _embedding_layer(model: Any) -> nn.Module:
    try:
        layer = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        layer = None
    if not isinstance(layer, nn.Module):
        raise ModelError(f"{type(model).__name__} has no input embeddings to measure distances in")
    return layer
