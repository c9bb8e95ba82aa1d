"""Gradient alignment in three launches: sums of each tile, sums of each tensor, the new gradient.

A tile is what one program reads: at most 4096 elements of one tensor, a whole one at an aligned address and loaded 16
bytes at a time. The mean norm, the gate and, with ``granularity="global"``, the sums over all tensors are taken anew by
every program of the last launch, each in the same order: for hundreds of tensors that is a few kilobytes out of the
cache, where a launch of its own, or a program that the others wait for, would cost more. 20 bytes an element are
moved altogether, no atomics are used, and the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from asepsis.kernels._segments import PIECE, Segments
from asepsis.kernels._triton._shipped import Shipped
from asepsis.kernels.gradient_alignment import Granularity, Rule

_WARPS = 8  # 16 elements of both arenas a thread; with half as many the update spills on sm_80
_PARTS = 1024  # tiles of a tensor summed at a time
_TENSORS = 512  # tensors summed at a time
_VARYING = ("n_tiles", "n")  # models of all sizes run the same code


@triton.jit
def _load(grads, reference, tiles, tile, n_tiles, BLOCK: tl.constexpr):
    """Both gradients of a tile ``[BLOCK]``, zero outside it, with its first offset and its bounds."""
    low = tl.load(tiles + tile)
    high = tl.load(tiles + n_tiles + tile)
    start = tl.multiple_of(low // BLOCK * BLOCK, BLOCK)
    offsets = start + tl.arange(0, BLOCK)
    if high - low == BLOCK:  # without a mask the compiler loads 16 bytes at a time
        g = tl.load(grads + offsets)
        r = tl.load(reference + offsets)
    else:
        inside = (offsets >= low) & (offsets < high)
        g = tl.load(grads + offsets, mask=inside, other=0.0)
        r = tl.load(reference + offsets, mask=inside, other=0.0)
    return g, r, offsets, low, high


@triton.jit(do_not_specialize=_VARYING)
def _tile_sums(grads, reference, tiles, partials, n_tiles, BLOCK: tl.constexpr):
    tile = tl.program_id(0)
    g, r, _offsets, _low, _high = _load(grads, reference, tiles, tile, n_tiles, BLOCK)
    tl.store(partials + tile, tl.sum(g * r, axis=0))
    tl.store(partials + n_tiles + tile, tl.sum(r * r, axis=0))
    tl.store(partials + 2 * n_tiles + tile, tl.sum(g * g, axis=0))


@triton.jit(do_not_specialize=_VARYING)
def _tensor_sums(partials, first_tile, sums, n_tiles, n, PARTS: tl.constexpr):
    tensor = tl.program_id(0)
    first = tl.load(first_tile + tensor)
    last = tl.load(first_tile + tensor + 1)
    d = tl.zeros([PARTS], tl.float32)
    rr = tl.zeros([PARTS], tl.float32)
    gg = tl.zeros([PARTS], tl.float32)
    for at in range(first, last, PARTS):
        index = at + tl.arange(0, PARTS)
        inside = index < last
        d += tl.load(partials + index, mask=inside, other=0.0)
        rr += tl.load(partials + n_tiles + index, mask=inside, other=0.0)
        gg += tl.load(partials + 2 * n_tiles + index, mask=inside, other=0.0)
    tl.store(sums + tensor, tl.sum(d, axis=0))
    tl.store(sums + n + tensor, tl.sum(rr, axis=0))
    tl.store(sums + 2 * n + tensor, tl.sum(gg, axis=0))


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _sums_of(sums, index, inside, n):
    d = tl.load(sums + index, mask=inside, other=0.0)
    rr = tl.load(sums + n + index, mask=inside, other=0.0)
    gg = tl.load(sums + 2 * n + index, mask=inside, other=0.0)
    return d, rr, gg, ~(_finite(d) & _finite(rr) & _finite(gg))


@triton.jit
def _decide(d, rr, gg, dead, RULE: tl.constexpr):
    """Coefficients ``keep`` of g and ``toward`` of r, and whether the tensor is aligned, and whether it is zeroed."""
    live = (rr > 0) & (gg > 0)
    divisor = tl.where(live, rr, 1.0)
    if RULE == "reflect":
        keep = 0.0
        toward = tl.div_rn(tl.abs(d), divisor)
    elif RULE == "drop":
        keep = 0.0
        toward = tl.div_rn(tl.where(d < 0, 0.0, d), divisor)
    elif RULE == "signed":
        keep = 0.0
        toward = tl.div_rn(d, divisor)
    else:
        keep = 1.0
        toward = tl.div_rn(tl.where(d > 0, 0.0, -d), divisor)
    toward = tl.where(live, toward, 0.0)
    dead = dead | ~(_finite(toward) & _finite(rr) & _finite(gg))
    return keep, toward, live & ~dead, dead


@triton.jit(do_not_specialize=_VARYING)
def _update(
    grads, reference, tiles, tile_tensor, sums, reference_loss, stats, n_tiles, n,
    raw_weight, raw_weight_below, min_loss, min_norm,
    RULE: tl.constexpr, GLOBAL: tl.constexpr, HAS_LOSS: tl.constexpr,
    BLOCK: tl.constexpr, TENSORS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    tensor = tl.load(tile_tensor + tile)
    g, r, offsets, low, high = _load(grads, reference, tiles, tile, n_tiles, BLOCK)

    norms = tl.zeros([TENSORS], tl.float32)
    counted = tl.zeros([TENSORS], tl.float32)
    all_d = tl.zeros([TENSORS], tl.float32)
    all_rr = tl.zeros([TENSORS], tl.float32)
    all_gg = tl.zeros([TENSORS], tl.float32)
    for at in range(0, n, TENSORS):
        index = at + tl.arange(0, TENSORS)
        inside = index < n
        each_rr = tl.load(sums + n + index, mask=inside, other=0.0)
        norm = tl.where(_finite(each_rr), tl.sqrt_rn(each_rr), 0.0)
        norms += norm
        counted += tl.where(norm > 0, 1.0, 0.0)
        if GLOBAL:
            each_d, each_rr, each_gg, bad = _sums_of(sums, index, inside, n)
            all_d += tl.where(bad, 0.0, each_d)
            all_rr += tl.where(bad, 0.0, each_rr)
            all_gg += tl.where(bad, 0.0, each_gg)
    nbar = tl.div_rn(tl.sum(norms, axis=0), tl.maximum(tl.sum(counted, axis=0), 1.0))
    full = nbar > min_norm
    loss = float("nan")
    if HAS_LOSS:
        loss = tl.load(reference_loss).to(tl.float32)
        full = full & ~(loss <= min_loss)
    m = tl.where(full, raw_weight, raw_weight_below)

    d, rr, gg, dead = _sums_of(sums, tensor, tensor < n, n)
    whole_d = tl.sum(all_d, axis=0)
    whole_rr = tl.sum(all_rr, axis=0)
    whole_gg = tl.sum(all_gg, axis=0)
    if GLOBAL:
        d = whole_d
        rr = whole_rr
        gg = whole_gg
    keep, toward, live, dead = _decide(d, rr, gg, dead, RULE)
    of_grads = tl.where(live, (1.0 - m) * keep + m, 1.0)
    out = tl.where(dead, 0.0, g * of_grads + r * ((1.0 - m) * toward))  # 0 times NaN would be NaN
    if high - low == BLOCK:
        tl.store(grads + offsets, out)
    else:
        tl.store(grads + offsets, out, mask=(offsets >= low) & (offsets < high))

    if tile == 0:
        lives = tl.zeros([TENSORS], tl.float32)
        conflicts = tl.zeros([TENSORS], tl.float32)
        cosines = tl.zeros([TENSORS], tl.float32)
        raws = tl.zeros([TENSORS], tl.float32)
        deads = tl.zeros([TENSORS], tl.float32)
        for at in range(0, n, TENSORS):
            index = at + tl.arange(0, TENSORS)
            inside = index < n
            each_d, each_rr, each_gg, bad = _sums_of(sums, index, inside, n)
            if GLOBAL:
                each_d = tl.where(inside, whole_d, 0.0)
                each_rr = tl.where(inside, whole_rr, 0.0)
                each_gg = tl.where(inside, whole_gg, 0.0)
            _keep, _toward, each_live, bad = _decide(each_d, each_rr, each_gg, bad, RULE)
            bad = bad & inside
            each_live = each_live & inside
            lengths = tl.where(each_live, tl.sqrt_rn(each_rr) * tl.sqrt_rn(each_gg), 1.0)
            cosines += tl.where(each_live, tl.div_rn(each_d, lengths), 0.0)
            lives += tl.where(each_live, 1.0, 0.0)
            conflicts += tl.where(each_live & (each_d < 0), 1.0, 0.0)
            raws += tl.where(inside & ~each_live & ~bad, 1.0, 0.0)
            deads += tl.where(bad, 1.0, 0.0)
        n_live = tl.maximum(tl.sum(lives, axis=0), 1.0)
        tl.store(stats, tl.where(full, 1.0, 0.0))
        tl.store(stats + 1, m)
        tl.store(stats + 2, nbar)
        tl.store(stats + 3, loss)
        tl.store(stats + 4, tl.div_rn(tl.sum(conflicts, axis=0), n_live))
        tl.store(stats + 5, tl.div_rn(tl.sum(cosines, axis=0), n_live))
        tl.store(stats + 6, tl.sum(raws, axis=0))
        tl.store(stats + 7, tl.sum(deads, axis=0))


@torch.library.custom_op("asepsis::gradient_alignment", mutates_args={"grads"})
def _align(
    grads: Tensor,
    reference: Tensor,
    tiles: Tensor,
    tile_tensor: Tensor,
    first_tile: Tensor,
    rule: str,
    whole: bool,  # noqa: FBT001 - an operator's schema
    raw_weight: float,
    raw_weight_below: float,
    reference_loss: Tensor | None,
    min_reference_loss: float,
    min_reference_norm: float,
) -> Tensor:
    n_tiles, n = len(tile_tensor), len(first_tile) - 1
    partials = torch.empty(3, n_tiles, dtype=torch.float32, device=grads.device)
    sums = torch.empty(3, n, dtype=torch.float32, device=grads.device)
    stats = torch.empty(8, dtype=torch.float32, device=grads.device)
    with torch.cuda.device_of(grads):
        _tile_sums[(n_tiles,)](grads, reference, tiles, partials, n_tiles, BLOCK=PIECE, num_warps=_WARPS)
        _tensor_sums[(n,)](partials, first_tile, sums, n_tiles, n, PARTS=_PARTS, num_warps=4)
        _update[(n_tiles,)](
            grads, reference, tiles, tile_tensor, sums,
            grads if reference_loss is None else reference_loss, stats, n_tiles, n,
            float(raw_weight), float(raw_weight_below), float(min_reference_loss), float(min_reference_norm),
            RULE=rule, GLOBAL=whole, HAS_LOSS=reference_loss is not None, BLOCK=PIECE, TENSORS=_TENSORS,
            num_warps=_WARPS,
        )  # fmt: skip
    return stats


@_align.register_fake
def _(grads: Tensor, *_: object) -> Tensor:
    return grads.new_empty(8)


def align(
    grads: Tensor,
    reference: Tensor,
    segments: Segments,
    rule: Rule,
    granularity: Granularity,
    raw_weight: float,
    raw_weight_below: float,
    reference_loss: Tensor | None,
    min_reference_loss: float,
    min_reference_norm: float,
) -> Tensor:
    """Do what :func:`asepsis.kernels.gradient_alignment` says, for float32 arenas that it has checked."""
    out: Tensor = _align(
        grads,
        reference,
        segments.tiles,
        segments.tile_tensor,
        segments.first_tile,
        rule,
        granularity == "global",
        raw_weight,
        raw_weight_below,
        reference_loss,
        min_reference_loss,
        min_reference_norm,
    )
    return out


def shipped() -> Iterator[Shipped]:
    """List every launch; the code for another type of the reference loss differs by one cast."""
    arenas = {"grads": "*fp32", "reference": "*fp32", "tiles": "*i64", "n_tiles": "i32"}
    yield Shipped(
        label="fp32",
        kernel=_tile_sums,
        types={**arenas, "partials": "*fp32"},
        constants={"BLOCK": PIECE},
        warps=_WARPS,
        aligned=("grads", "reference", "tiles", "partials"),
        wide_loads=True,
    )
    yield Shipped(
        label="fp32",
        kernel=_tensor_sums,
        types={"partials": "*fp32", "first_tile": "*i32", "sums": "*fp32", "n_tiles": "i32", "n": "i32"},
        constants={"PARTS": _PARTS},
        warps=4,
        aligned=("partials", "first_tile", "sums"),
    )
    scalars = ("raw_weight", "raw_weight_below", "min_loss", "min_norm")
    tables = {"tile_tensor": "*i32", "sums": "*fp32", "reference_loss": "*fp32", "stats": "*fp32", "n": "i32"}
    for rule in get_args(Rule):
        for whole in (False, True):
            yield Shipped(
                label=f"{rule}-{'global' if whole else 'tensor'}",
                kernel=_update,
                types={**arenas, **tables, **dict.fromkeys(scalars, "fp32")},
                constants={
                    "RULE": rule, "GLOBAL": whole, "HAS_LOSS": True, "BLOCK": PIECE, "TENSORS": _TENSORS
                },
                aligned=("grads", "reference", "tiles", *tables)[:-1],
                warps=_WARPS,
                wide_loads=True,
            )  # fmt: skip
