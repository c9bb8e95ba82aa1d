"""The products of a multi-scale LoRA layer on tensors: memory for results and partial sums, and the launches.

Matrices have their last dimension contiguous (:func:`rows_of`); factors and weights come with any strides. Whoever calls
has made the tensors' device the current one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asepsis.kernels._triton import _lora_launch as launch
from asepsis.kernels._triton import _lora_tiles as tiles
from asepsis.kernels._triton._lora_launch import Cut, blocks
from asepsis.kernels._triton._lora_launch import Mask as Mask
from asepsis.kernels._triton._lora_tiles import Rank

#: Most memory the partial sums of one gradient may take, bytes.
SCRATCH = 32 << 20


def rows_of(matrix: Tensor) -> Tensor:
    """Return the matrix with its last dimension contiguous, copied only if it is not."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def shrink(
    x: Tensor, factor: Tensor, scale: Tensor, mask: Mask | None, *, masked: bool, out: Tensor | None = None
) -> Tensor:
    """Return ``(keep * x) @ factor * scale``, factor ``[K, R]``, as ``[M, width]`` with zeros beyond R."""
    out = x.new_empty(len(x), Rank.of(factor.shape[1]).width) if out is None else out
    launch.shrink(x, factor, scale.contiguous(), out, mask, _limit(x), masked=masked).run()
    return out


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, p: Tensor, factor: Tensor, mask: Mask | None
) -> Tensor:
    """Return ``x @ weight^T + bias + keep * (p @ factor^T)``, weight ``[N, K]`` and factor ``[N, R]``."""
    out = x.new_empty(len(x), len(weight))
    bias = None if bias is None else bias.contiguous()
    launch.linear(x, weight, bias, p, factor, out, mask, _limit(x)).run()
    return out


def expand(p: Tensor, factor: Tensor, mask: Mask, out: Tensor, *, add: bool) -> Tensor:
    """Write ``keep * (p @ factor^T)`` to ``out``, or add it; factor ``[N, R]``."""
    launch.expand(p, factor, mask, out, add=add).run()
    return out


def gradient(
    x: Tensor,
    p: Tensor,
    mask: Mask | None,
    *,
    like: Tensor,
    rank_first: bool,
    boundary: int | None,
    scratch: int = SCRATCH,
) -> list[Tensor]:
    """Return ``(keep * x)^T @ p`` as the factor ``like`` has it, and float32 of the rows from ``boundary`` on.

    ``like`` is A ``[R, D]``, where ``rank_first``, or B ``[D, R]``. Rows are summed in parts and the parts in order: no
    atomics, so equal inputs give equal bits. The parts take ``scratch`` bytes at a time, or what one block of columns takes.
    """
    m, d = x.shape
    r = len(like) if rank_first else like.shape[1]
    shape, before = Rank.of(r), m if boundary is None else boundary
    made = [torch.empty(like.shape, dtype=like.dtype, device=like.device)]
    if boundary is not None:
        made.append(torch.empty(like.shape, dtype=torch.float32, device=like.device))
    tile = tiles.gradient(shape, x.element_size(), _limit(x))
    parts = min(tiles.splits(m, d, tile, shape), max(1, scratch // (4 * r * d)))
    chunk = max(1, blocks(blocks(m, parts), tile.m)) * tile.m
    counts = [blocks(before, chunk), blocks(m - before, chunk)]
    cut = Cut(before, m, chunk, counts[0])
    if counts == [1, 0]:
        launch.gradient(x, p, made[0][None], r, mask, 0, cut, tile, rank_first=rank_first).run()
        return [made[0], *(t.zero_() for t in made[1:])]
    columns = max(tile.n, scratch // (4 * r * max(1, sum(counts))) // tile.n * tile.n)
    for start in range(0, d, columns):
        block = slice(start, min(start + columns, d))
        targets = [t[:, block] if rank_first else t[block] for t in made]
        partial = x.new_empty(sum(counts), *targets[0].shape, dtype=torch.float32)
        launch.gradient(x, p, partial, r, mask, start, cut, tile, rank_first=rank_first).run()
        for target, some in zip(targets, partial.split(counts), strict=False):
            _add_up(some, target)
    return made


def _add_up(partial: Tensor, target: Tensor) -> None:
    if len(partial) == 0:
        target.zero_()
    elif target.is_contiguous():
        launch.add_up(partial, target).run()
    else:
        whole = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        launch.add_up(partial, whole).run()
        target.copy_(whole)


def _limit(x: Tensor) -> int:
    return tiles.shared_limit(torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0))
