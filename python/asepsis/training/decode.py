"""Greedy continuations of prompts, and how sure the model was of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@torch.no_grad()
def continue_rows(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    tokenizer: Any,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the log-probability of each token greedily taken, float32 [B, tokens]; NaN after a row's end token.

    One pass over the whole text for each token, without a cache of keys and values: rows stand at the left, as they do in
    training, so that positions are right for every architecture and for networks with virtual tokens. ``generate`` would
    bring the model's own generation settings along.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max()) + tokens
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids, lengths = ids.to(device), lengths.to(device)
    rows = torch.arange(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    found = torch.full((len(prompts), tokens), torch.nan, device=device)
    for step in range(tokens):
        now = int(lengths.max())
        mask = torch.arange(now, device=device)[None] < lengths[:, None]
        logits = network(input_ids=ids[:, :now], attention_mask=mask.long()).logits
        last = _at(logits, now, rows, lengths - 1)
        best, token = last.float().log_softmax(-1).max(-1)
        found[alive, step] = best[alive]
        ids[rows[alive], lengths[alive]] = token[alive]
        lengths = lengths + alive
        alive = alive & (token != tokenizer.eos_token_id)
        if not alive.any():
            break
    return found.cpu().numpy()


def _at(logits: Tensor, now: int, rows: Tensor, places: Tensor) -> Tensor:
    """Return each row's logits [B, V] at a place of its text; virtual tokens stand in front and are skipped."""
    chosen: Tensor = logits[:, -now:][rows, places]
    return chosen
