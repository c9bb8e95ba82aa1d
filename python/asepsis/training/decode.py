"""How a causal LM goes on after prompts: greedily, or how likely it takes given words to be."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asepsis.core.phases import Continue
from asepsis.training.collate import Collator


def followed(collate: Collator, request: Continue, positions: int) -> tuple[list[list[list[int]]], int]:
    """Return the words' token ids after both ends that prompts have, and how many tokens of a prompt they leave room for."""
    # a word stands apart from a prompt that does not end in white space
    words = [[collate.encode_pair(end, word)[1] for word in request.words] for end in ("", " ")]
    follow = max([request.tokens, *map(len, words[0] + words[1])])
    return words, max(1, positions - follow)  # what follows takes positions too


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
    ids, lengths = _block(prompts, tokens, tokenizer.pad_token_id, device)
    rows = torch.arange(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    found = torch.full((len(prompts), tokens), torch.nan, device=device)
    kept, mask = None, torch.empty(0)
    for step in range(tokens):
        if kept is None:
            logits, kept, mask = _read(network, ids, lengths, cached=cached)
        else:
            last = lengths[:, None] - 1
            logits, mask = _read_on(network, ids.gather(1, last), last, kept, mask)
            logits = logits[:, -1]
        best, token = logits.float().log_softmax(-1).max(-1)
        found[alive, step] = best[alive]
        ids[rows[alive], lengths[alive]] = token[alive]
        lengths = lengths + alive
        alive = alive & (token != tokenizer.eos_token_id)
        if not alive.any():
            break
    return found.cpu().numpy()


@torch.no_grad()
def judge_rows(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    words: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    device: torch.device,
    cached: bool = True,
) -> NDArray[np.float32]:
    """Return the mean log-probability of each word's tokens after each prompt, float32 [B, C].

    Parameters
    ----------
    words : sequences of token ids
        As they would follow a prompt, the end token with them.
    cached : bool
        As for :func:`continue_rows`: the prompts are then read once for all words.
    """
    longest = max(len(word) for word in words)
    ids, lengths = _block(prompts, longest, tokenizer.pad_token_id, device)
    first, kept, mask = _read(network, ids, lengths, cached=cached)
    first = first.float().log_softmax(-1)
    columns = []
    for word in words:
        total = first[:, word[0]].clone()
        said = torch.tensor(word, device=device)
        places = lengths[:, None] + torch.arange(len(word), device=device)
        if kept is not None and len(word) > 1:
            follow = said[None, :-1].expand(len(prompts), -1)
            logits, _ = _read_on(network, follow, places[:, :-1], _twin(kept), mask)
            total += (
                logits.float()
                .log_softmax(-1)
                .gather(2, said[None, 1:, None].expand(len(prompts), -1, 1))
                .sum((1, 2))
            )
        for at in range(1, len(word)) if kept is None else ():
            ids.scatter_(1, places[:, at - 1 : at], said[at - 1].expand(len(prompts), 1))
            logits, _, _ = _read(network, ids, lengths + at, cached=False)
            total += logits.float().log_softmax(-1)[:, word[at]]
        columns.append(total / len(word))
    return torch.stack(columns, dim=1).cpu().numpy()


def _block(
    prompts: Sequence[Sequence[int]], more: int, padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return prompts at the left of ids [B, longest + more], and their lengths [B]."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(prompts), int(lengths.max()) + more), padding, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids.to(device), lengths.to(device)


def _read(network: nn.Module, ids: Tensor, lengths: Tensor, *, cached: bool) -> tuple[Tensor, Any, Tensor]:
    """Read rows from their beginning; return the logits after the last token [B, V], a cache or None, and the mask."""
    takes, now = _takes(network), int(lengths.max())
    keep = {"use_cache": True} if cached and {"use_cache", "past_key_values", "position_ids"} <= takes else {}
    mask = (torch.arange(now, device=ids.device)[None] < lengths[:, None]).long()
    # counted from the end, for virtual tokens stand in front
    places, at = torch.unique(lengths - 1 - now, return_inverse=True)
    short = {"logits_to_keep": places} if "logits_to_keep" in takes else {}
    out = network(input_ids=ids[:, :now], attention_mask=mask, **short, **keep)
    logits: Tensor = out.logits[torch.arange(len(ids), device=ids.device), at if short else places[at]]
    return logits, _whole(out.past_key_values, int(ids.shape[1])) if keep else None, mask


def _read_on(
    network: nn.Module, ids: Tensor, places: Tensor, kept: Any, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Read the next tokens [B, T] at their places; return logits [B, T, V], and the mask with them."""
    mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    out = network(
        input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=kept, use_cache=True
    )
    return out.logits, mask


def _twin(cache: Any) -> Any:
    """Return a cache that may be read on from while the other stays: layers replace their tensors, they do not write to them."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


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
