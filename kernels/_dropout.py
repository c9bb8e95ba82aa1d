"""Dropout whose mask is a function of a seed: nothing is stored, and every path draws the same mask.

Element ``(m, k)`` of an ``[M, K]`` input is kept where the 16 bits at place ``k % 8`` of Philox4x32-7 (Salmon et al., SC
2011) with key ``seed`` and counter ``(k // 8, m, 0, 0)`` are less than ``threshold(dropout)``; places count through the
four words, the lower half of a word first. The mask so depends on no tile size, no device and no order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asepsis.errors import ConfigError

#: Philox rounds: 7 pass BigCrush and are the fewest the paper calls safe.
ROUNDS = 7
_LEVELS = 1 << 16
_WORD = (1 << 32) - 1
_KEYS = (0x9E3779B9, 0xBB67AE85)
_FACTORS = (0xD2511F53, 0xCD9E8D57)


def threshold(dropout: float) -> int:
    """Return how many of the 65,536 values keep an element; 65,536 is no dropout at all.

    Raises
    ------
    ConfigError
        ``dropout`` is outside ``[0, 1)`` or so close to 1 that nothing would be kept.
    """
    kept = round((1.0 - dropout) * _LEVELS) if 0.0 <= dropout < 1.0 else 0
    if kept < 1:
        raise ConfigError(f"dropout must be at least 0 and less than 1 - 2^-17, got {dropout!r}")
    return kept


def inverse(dropout: float) -> float:
    """Return what the kept elements are multiplied by: one over the share that is really kept."""
    return _LEVELS / threshold(dropout)


def keep(seed: Tensor, rows: int, columns: int, dropout: float) -> Tensor:
    """Return the mask, bool ``[rows, columns]`` on the seed's device; ``seed`` is a 0-dim int64 tensor."""
    device = seed.device
    groups = -(-columns // 8)
    counter = [torch.arange(groups, device=device).expand(rows, groups)]
    counter += [torch.arange(rows, device=device)[:, None].expand(rows, groups)]
    counter += [torch.zeros_like(counter[0])] * 2
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(ROUNDS):
        low, high = _product(_FACTORS[0], counter[0]), _product(_FACTORS[1], counter[2])
        counter = [high[1] ^ counter[1] ^ key[0], high[0], low[1] ^ counter[3] ^ key[1], low[0]]
        key = [(part + step) & _WORD for part, step in zip(key, _KEYS, strict=True)]
    halves = [half for word in counter for half in (word & 0xFFFF, word >> 16)]
    bits = torch.stack(halves, -1).view(rows, 8 * groups)[:, :columns]
    return bits < threshold(dropout)


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of a product of 32-bit numbers, by halves: int64 holds no 64-bit product without a sign."""
    first = word * (factor & 0xFFFF)
    second = word * (factor >> 16) + (first >> 16)
    return ((second & 0xFFFF) << 16) | (first & 0xFFFF), second >> 16
