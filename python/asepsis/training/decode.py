"""Greedy continuations of prompts, and how sure the model was of each token."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@torch.no_grad()
def continue_rows(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    tokenizer: Any,
    device: torch.device,
    cached: bool = True,
) -> NDArray[np.float32]:
    """Return the log-probability of each token greedily taken, float32 [B, tokens]; NaN after a row's end token.

    Rows stand at the left, as they do in training, so that positions are right for every architecture and for networks
    with virtual tokens. ``generate`` would bring the model's own generation settings along.

    Parameters
    ----------
    cached : bool
        Keep keys and values where the network can (see :func:`_whole`), so that each token after the first costs a pass over
        one token a row. What else there is reads the whole text for each token, as all do without: same tokens, up to
        rounding.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(prompts), int(lengths.max()) + tokens), tokenizer.pad_token_id, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids, lengths = ids.to(device), lengths.to(device)
    rows = torch.arange(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    found = torch.full((len(prompts), tokens), torch.nan, device=device)
    takes = _takes(network)
    keep = {"use_cache": True} if cached and {"use_cache", "past_key_values", "position_ids"} <= takes else {}
    kept, mask = None, torch.empty(0)
    for step in range(tokens):
        if kept is None:
            now = int(lengths.max())
            mask = (torch.arange(now, device=device)[None] < lengths[:, None]).long()
            # counted from the end, for virtual tokens stand in front
            places, at = torch.unique(lengths - 1 - now, return_inverse=True)
            short = {"logits_to_keep": places} if "logits_to_keep" in takes else {}
            out = network(input_ids=ids[:, :now], attention_mask=mask, **short, **keep)
            logits = out.logits[rows, at if short else places[at]]
            kept = _whole(out.past_key_values, int(ids.shape[1])) if keep else None
        else:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            last = lengths[:, None] - 1
            out = network(
                input_ids=ids.gather(1, last),
                attention_mask=mask,
                position_ids=last,
                past_key_values=kept,
                **keep,
            )
            logits = out.logits[:, -1]
        best, token = logits.float().log_softmax(-1).max(-1)
        found[alive, step] = best[alive]
        ids[rows[alive], lengths[alive]] = token[alive]
        lengths = lengths + alive
        alive = alive & (token != tokenizer.eos_token_id)
        if not alive.any():
            break
    return found.cpu().numpy()


def _takes(network: Any) -> set[str]:
    """Return what may be passed to the network's forward; nothing of a cache where a prompt is learned, which is kept in it."""
    if not hasattr(network, "get_base_model"):
        return set(inspect.signature(network.forward).parameters)
    taken = set(inspect.signature(network.get_base_model().forward).parameters)
    return taken - {"use_cache"} if network.active_peft_config.is_prompt_learning else taken


def _whole(cache: Any, width: int) -> Any:
    """Return a cache that holds every token's keys and values apart, or None.

    Only there is padding harmless that stands between a prompt and what follows: a recurrent state would have read it,
    a window narrower than the text would count it.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    for layer in getattr(cache, "layers", None) or [None]:
        windowed = type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > width
        if type(layer) is not DynamicLayer and not windowed:
            return None
    return cache
