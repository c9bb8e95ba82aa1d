"""Losses of positions summed by the packed sample they belong to, where a row of a batch holds several.

The segment of a position is the number of its sample, 0 to ``n - 1``, in any order and across rows; a negative one belongs
to no sample. A number of ``n`` or more makes every sum NaN: an error would have to wait for the device to be noticed.
Sums are taken in order of position, without atomics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asepsis.errors import ConfigError, DataError


def check(labels: Tensor, segments: Tensor | None, n_segments: int | None) -> None:
    """Raise where segments and their number are not given together or do not fit the labels.

    Raises
    ------
    ConfigError
        Only one of them is given, or the number is negative.
    DataError
        The segments are not as many as the labels, no integers, or on another device.
    """
    if (segments is None) != (n_segments is None):
        raise ConfigError(
            "segments and n_segments go together: the numbers of the samples and how many there are"
        )
    if segments is None or n_segments is None:
        return
    if n_segments < 0:
        raise ConfigError(f"n_segments must be at least 0, got {n_segments}")
    if segments.shape != labels.shape or segments.device != labels.device:
        raise DataError(
            f"segments must be like labels, {tuple(labels.shape)} on {labels.device}; "
            f"got {tuple(segments.shape)} on {segments.device}"
        )
    if segments.is_floating_point() or segments.dtype == torch.bool:
        raise DataError(f"segments must be integers, got {segments.dtype}")


def sums(losses: Tensor, counted: Tensor, segments: Tensor, n_segments: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of each segment, differentiable, and int64 how many of them are counted.

    ``losses`` is ``[N]``, zero where not counted; ``counted`` and ``segments`` are ``[N]`` too.
    """
    outside = (segments < 0) | (segments >= n_segments)
    of = segments.long().masked_fill(
        outside, n_segments
    )  # the others are a segment of their own, left out below
    order = of.argsort(stable=True)
    numbers = torch.arange(n_segments + 2, device=of.device)
    bounds = torch.searchsorted(of.index_select(0, order), numbers)
    total: Tensor = _Sums.apply(losses, of, order, bounds)  # type: ignore[no-untyped-call]
    total = total.masked_fill((segments >= n_segments).any(), torch.nan)
    before = torch.cat((bounds.new_zeros(1), counted.index_select(0, order).long().cumsum(0)))
    count = before.index_select(0, bounds).diff()
    return total[:n_segments], count[:n_segments]


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Tensor, of: Tensor, order: Tensor, bounds: Tensor) -> Tensor:
        ctx.save_for_backward(of)
        # unsafe: without it the bounds are fetched to be checked
        ordered = losses.index_select(0, order)
        return torch.segment_reduce(ordered, "sum", lengths=bounds.diff(), unsafe=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (of,) = ctx.saved_tensors
        return grad.index_select(0, of), None, None, None
