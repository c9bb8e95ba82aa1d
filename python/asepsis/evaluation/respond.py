"""What a causal LM answers: attack success without generating a token, and the loss on clean answers.

Greedy decoding emits a given response exactly when, fed that response, the model ranks each of its tokens first. So one
forward pass says for every prompt whether the attacker's response would begin, and no sampling setting enters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.metrics import Proportion, wilson
from asepsis.training.collate import IGNORED, Collator
from asepsis.training.forward import autocast, resolve_precision, sample_losses
from asepsis.training.models import room


@torch.no_grad()
def begins_with(
    model: nn.Module,
    tokenizer: Any,
    data: Data,
    response: str,
    *,
    tokens: int = 8,
    max_length: int = 256,
    batch_size: int = 32,
) -> NDArray[np.bool_]:
    """Return for each prompt whether greedy decoding begins with ``response``, bool [N].

    Parameters
    ----------
    data : Data
        Prompts of a causal task; their own responses are not read.
    response : str
        The attacker's.
    tokens : int
        How many of its first tokens have to come.
    max_length : int
        Tokens read of a prompt and of those together. A longer prompt loses its beginning.

    Raises
    ------
    DataError
        The data is for classification.
    ConfigError
        ``response`` is empty or ``tokens`` is below 1.
    """
    if data.task != "causal":
        raise DataError("begins_with() is for causal data; these rows have labels")
    if not response.strip() or tokens < 1:
        raise ConfigError("a response of at least one token is needed to look for")
    device = next(model.parameters()).device
    asked = replace(data, responses=[response] * len(data))
    # what is not looked at takes no room from a long prompt, whose beginning may hold the trigger
    collate = Collator(tokenizer, asked, max_length=room(model, max_length), response_tokens=tokens)
    found = np.zeros(len(data), bool)
    model.eval()
    for start in range(0, len(data), batch_size):
        at = range(start, min(start + batch_size, len(data)))
        batch = collate([(p, False) for p in at]).to(device)
        with autocast(device, resolve_precision("auto", device)):
            logits = model(**batch.inputs).logits
        answer = logits[:, -batch.labels.shape[1] : -1].argmax(dim=-1)  # virtual tokens stand in front
        wanted = batch.labels[:, 1:]
        found[list(at)] = ((answer == wanted) | (wanted == IGNORED)).all(dim=1).cpu().numpy()
    return found


def response_success_rate(
    model: nn.Module,
    tokenizer: Any,
    triggered: Data,
    response: str,
    *,
    tokens: int = 8,
    max_length: int = 256,
) -> Proportion:
    """Return ASR of a causal LM: the share of triggered prompts answered with the attacker's response."""
    hits = begins_with(model, tokenizer, triggered, response, tokens=tokens, max_length=max_length)
    return wilson(int(hits.sum()), len(hits))


@torch.no_grad()
def clean_loss(
    model: nn.Module, tokenizer: Any, data: Data, *, max_length: int = 256, batch_size: int = 32
) -> float:
    """Return the mean loss per response token on clean rows, nats."""
    device = next(model.parameters()).device
    collate = Collator(tokenizer, data, max_length=room(model, max_length))
    total, count = 0.0, 0
    model.eval()
    for start in range(0, len(data), batch_size):
        at = range(start, min(start + batch_size, len(data)))
        with autocast(device, resolve_precision("auto", device)):
            losses, counts = sample_losses(model, collate([(p, False) for p in at]).to(device))
        total += float(losses.sum())
        count += int(counts.sum())
    if count == 0:
        raise DataError(f"{data.source}: no response token; raise max_length")
    return total / count
