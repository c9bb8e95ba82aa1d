"""Loss of hidden states through an output matrix, forward and backward, without the logits.

Forward, a program takes some positions and a part of the vocabulary, multiplies a tile of logits at a time and keeps of
it the maximum and the sum of exponentials; a second launch puts the parts together in order. Backward multiplies the
tiles again, and writes the gradient of the logits of as many positions as fit 256 MiB; from these one launch makes their
gradient of the hidden states and, where the output matrix is trained, another adds to its gradient, which is kept in
float32. Each number has one owner and one order of summation, there are no atomics.

Positions without a label are sorted out on the device: programs beyond the last that counts return at once, and the
host never learns how many there were. A label outside the vocabulary gives a loss of NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from asepsis.kernels._triton._sample_loss import (
    _combine,
    _forward,
    _grad_bias,
    _grad_hidden,
    _grad_logits,
    _grad_weight,
)
from asepsis.kernels._triton._shipped import Shipped

_BUFFER = 1 << 28  # bytes of the gradient of logits at a time
_LINE = 64  # its rows are padded to a multiple of this
_ROWS = 128  # positions of one program where nothing is multiplied


@dataclass(frozen=True)
class _Tile:
    """Output rows and columns of one program, steps of the inner dimension, and how it is launched."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    narrow: int
    """Columns instead of ``n`` where something beside the product wants registers."""
    parts: int = 8
    """Tiles of the vocabulary that one program of the forward pass goes through."""


_TILES = {
    ("16 bit", 80): _Tile(128, 128, 64, 8, 3, narrow=128),
    ("16 bit", 90): _Tile(128, 256, 64, 8, 3, narrow=128),
    ("16 bit, odd", 80): _Tile(64, 64, 32, 4, 2, narrow=64),
    ("16 bit, odd", 90): _Tile(64, 64, 32, 4, 2, narrow=64),
    ("32 bit", 80): _Tile(64, 64, 32, 8, 2, narrow=64),
    ("32 bit", 90): _Tile(64, 64, 32, 8, 2, narrow=64),
    ("32 bit, odd", 80): _Tile(64, 64, 32, 8, 2, narrow=64),
    ("32 bit, odd", 90): _Tile(64, 64, 32, 8, 2, narrow=64),
}
_EVEN = 64  # other widths are read a few bytes at a time, and want smaller tiles


def _tile(tensor: Tensor) -> _Tile:
    kind = "32 bit" if tensor.dtype == torch.float32 else "16 bit"
    kind += ", odd" if tensor.shape[1] % _EVEN else ""
    hopper = not tensor.is_cuda or torch.cuda.get_device_capability(tensor.device) >= (9, 0)
    return _TILES[kind, 90 if hopper else 80]


def _blocks(tile: _Tile, *, narrow: bool) -> dict[str, Any]:
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {
        "PRECISION": precision,
        "BM": tile.m,
        "BN": tile.narrow if narrow else tile.n,
        "BK": tile.k,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _counted_first(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Positions, those that count first and in order, and how many count: int64 ``[N]`` and ``[1]``."""
    ignored = labels == ignore_index
    return ignored.to(torch.uint8).argsort(stable=True), (~ignored).sum().view(1)


@torch.library.custom_op("asepsis::linear_sample_loss", mutates_args=())
def position_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Losses of positions, float32 ``[N]``, zero where ignored; and ``[2, N]`` for the way back.

    ``hidden`` is ``[N, D]``, ``weight`` ``[V, D]`` in the same dtype, ``bias`` ``[V]`` or None, ``labels`` int64 ``[N]``.
    """
    (n, width), n_classes = hidden.shape, len(weight)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    losses = torch.zeros(n, dtype=torch.float32, device=hidden.device)
    norms = torch.zeros(2, n, dtype=torch.float32, device=hidden.device)
    if n == 0:
        return losses, norms
    tile = _tile(hidden)
    blocks = _blocks(tile, narrow=bias is not None)
    parts = triton.cdiv(n_classes, blocks["BN"] * tile.parts)
    order, counted = _counted_first(labels, ignore_index)
    partials = torch.empty(2 * parts, n, dtype=torch.float32, device=hidden.device)
    picked = torch.full((n,), torch.nan, dtype=torch.float32, device=hidden.device)
    with torch.cuda.device_of(hidden):
        _forward[(triton.cdiv(n, tile.m), parts)](
            hidden, weight, weight if bias is None else bias, labels, order, counted, partials, picked,
            n, n_classes, width, width, width,
            HAS_BIAS=bias is not None, EVEN=width % _EVEN == 0, PARTS=tile.parts, **blocks,
        )  # fmt: skip
        _combine[(triton.cdiv(n, _ROWS),)](
            order, counted, partials, picked, losses, norms, n, parts, ROWS=_ROWS, num_warps=4
        )
    return losses, norms


@position_losses.register_fake
def _(hidden: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    n = hidden.shape[0]
    return hidden.new_empty(n, dtype=torch.float32), hidden.new_empty((2, n), dtype=torch.float32)


@torch.library.custom_op("asepsis::linear_sample_loss_backward", mutates_args=())
def _backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    norms: Tensor,
    ignore_index: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; an empty one where it is not wanted."""
    (n, width), n_classes = hidden.shape, len(weight)
    hidden, weight, grad = hidden.contiguous(), weight.contiguous(), grad.contiguous()
    of_hidden = torch.zeros_like(hidden) if wanted[0] else hidden.new_zeros(0)
    of_weight = torch.zeros(weight.shape if wanted[1] else 0, dtype=torch.float32, device=hidden.device)
    of_bias = torch.zeros(n_classes if wanted[2] else 0, dtype=torch.float32, device=hidden.device)
    tile = _tile(hidden)
    line = triton.cdiv(n_classes, _LINE) * _LINE
    fit = _BUFFER // (line * hidden.element_size()) // tile.m * tile.m
    chunk = min(max(fit, tile.m), triton.cdiv(n, tile.m) * tile.m)
    shares = torch.empty(chunk, line, dtype=hidden.dtype, device=hidden.device)
    order, counted = _counted_first(labels, ignore_index)
    wide, narrow = _blocks(tile, narrow=False), _blocks(tile, narrow=True)
    for begin in range(0, n, max(chunk, 1)):
        rows = triton.cdiv(min(chunk, n - begin), tile.m)
        with torch.cuda.device_of(hidden):
            _grad_logits[(rows, triton.cdiv(line, tile.narrow))](
                hidden, weight, weight if bias is None else bias, labels, order, counted, norms, grad, shares,
                n, begin, n_classes, width, width, width, line,
                HAS_BIAS=bias is not None, EVEN=width % _EVEN == 0, **narrow,
            )  # fmt: skip
            if wanted[0]:
                _grad_hidden[(rows, triton.cdiv(width, tile.n))](
                    shares,
                    weight,
                    order,
                    counted,
                    of_hidden,
                    begin,
                    n_classes,
                    width,
                    line,
                    width,
                    width,
                    **wide,
                )
            if wanted[1]:
                _grad_weight[(triton.cdiv(n_classes, tile.m), triton.cdiv(width, tile.narrow))](
                    shares,
                    hidden,
                    order,
                    counted,
                    of_weight,
                    begin,
                    chunk,
                    n_classes,
                    width,
                    line,
                    width,
                    **narrow,
                )
            if wanted[2]:
                _grad_bias[(triton.cdiv(n_classes, 128),)](
                    shares, counted, of_bias, begin, chunk, n_classes, line, BM=32, BN=128, num_warps=4
                )
    return of_hidden, of_weight.to(weight.dtype), of_bias.to(weight.dtype if bias is None else bias.dtype)


@_backward.register_fake
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    norms: Tensor,
    ignore_index: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(hidden) if wanted[0] else hidden.new_empty(0),
        torch.empty_like(weight) if wanted[1] else weight.new_empty(0),
        (weight if bias is None else bias).new_empty(len(weight) if wanted[2] else 0),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, bias, labels, ctx.ignore_index = inputs
    ctx.save_for_backward(hidden, weight, bias, labels, output[1])


def _give_back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, labels, norms = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    found = torch.ops.asepsis.linear_sample_loss_backward(
        grad, hidden, weight, bias, labels, norms, ctx.ignore_index, wanted
    )
    return (*(g if w else None for g, w in zip(found, wanted, strict=True)), None, None)


position_losses.register_autograd(_give_back, setup_context=_remember)


def shipped() -> Iterator[Shipped]:
    """List every launch. Odd widths are those that are no multiple of 64."""
    sizes = dict.fromkeys(
        (
            "n",
            "n_classes",
            "n_parts",
            "width",
            "stride_h",
            "stride_w",
            "stride_out",
            "line",
            "begin",
            "chunk",
        ),
        "i32",
    )
    index = {"labels": "*i64", "order": "*i64", "n_counted": "*i64"}
    sums = dict.fromkeys(("partials", "picked", "losses", "norms", "grad"), "*fp32")
    kinds = {"16 bit": (("bf16", "ieee"), ("fp16", "ieee")), "32 bit": (("fp32", "ieee"), ("fp32", "tf32"))}
    yield _entry(_combine, "all", {**sizes, **index, **sums}, {"ROWS": _ROWS})
    for (kind, capability), tile in _TILES.items():
        size, _, odd = kind.partition(", ")
        for dtype, precision in kinds[size]:
            inputs = dict.fromkeys(("hidden", "weight", "bias", "shares", "out"), f"*{dtype}")
            types = {**sizes, **index, **sums, **inputs}
            summed = {**types, "out": "*fp32"}
            wide = {"PRECISION": precision, "BM": tile.m, "BN": tile.n, "BK": tile.k}
            narrow = {**wide, "BN": tile.narrow}
            launch = {
                "warps": tile.warps,
                "stages": tile.stages,
                "capabilities": (capability,),
                "tensor_cores": dtype != "fp32" or precision != "ieee",
                "wide_loads": not odd,
            }
            label = "-".join(filter(None, (dtype, precision if dtype == "fp32" else "", odd)))
            for bias in (False, True):
                name, flags = label + "-bias" * bias, {"HAS_BIAS": bias, "EVEN": not odd}
                blocks = {**flags, **(narrow if bias else wide), "PARTS": tile.parts}
                yield _entry(_forward, name, types, blocks, **launch)
                yield _entry(_grad_logits, name, types, {**flags, **narrow}, **launch)
            yield _entry(_grad_hidden, label, types, wide, **launch)
            yield _entry(_grad_weight, label, summed, narrow, **launch)
            if precision == "ieee" and not odd:
                yield _entry(_grad_bias, dtype, summed, {"BM": 32, "BN": 128}, capabilities=(capability,))


def _entry(
    kernel: Any, label: str, types: dict[str, str], constants: dict[str, Any], **launch: Any
) -> Shipped:
    names = [name for name in kernel.arg_names if name not in constants]
    aligned = [name for name in names if types[name].startswith("*") or name == "line"]
    if launch.get("wide_loads"):
        aligned += [name for name in names if name in ("width", "stride_h", "stride_w", "stride_out")]
    own = {name: types[name] for name in names}
    return Shipped(
        label=label, kernel=kernel, types=own, constants=constants, aligned=tuple(aligned), **launch
    )
