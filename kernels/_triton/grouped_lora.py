"""Layers of one input in Triton: P of all of them in one pass over x, and backward dA of all of them in another.

P is ``[M, W]``, the layers' blocks side by side, each its rank rounded up to a multiple of 16 and zero beyond the rank, so
every block is aligned and serves as the P of its own layer. Forward each layer goes its own route on its block. Backward the
dP of each layer is written into its block of one matrix; then ``dx`` is accumulated in place, product after product, the
low-rank one once for all. The kernels are those of multi-scale LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from asepsis.kernels._triton import _lora_products as products
from asepsis.kernels._triton import _routes
from asepsis.kernels._triton._lora_tiles import Rank
from asepsis.kernels._triton._shipped import Shipped
from asepsis.kernels._triton.multiscale_lora import _on


@torch.library.custom_op("asepsis::grouped_lora", mutates_args=())
def forward(
    x: Tensor,
    bases: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    scales: Sequence[Tensor],
) -> list[Tensor]:
    """Return y of each layer ``[M, O]`` and P ``[M, W]``. There are bases or weights; a bias may be empty."""
    with _on(x):
        x, dtype = products.rows_of(x), x.dtype
        p = products.shrink(x, _stacked(downs).t(), _stacked(scales), None, masked=False)
        made = []
        for j, (up, block) in enumerate(zip(ups, _blocks(p, downs), strict=True)):
            narrow, raised = block[:, : up.shape[1]], up.to(dtype).t()
            if bases:
                made.append(torch.addmm(bases[j], narrow, raised))
                continue
            weight, bias = weights[j].to(dtype), biases[j].to(dtype) if len(biases[j]) else None
            layer = _routes.layer_of(x, downs[j], up, dropout=False)
            if _routes.plan(layer).forward == "fused":
                made.append(products.linear(x, weight, bias, block, up, None))
            else:
                made.append(F.linear(x, weight, bias).addmm_(narrow, raised))
        return [*made, p]


@forward.register_fake
def _(x: Tensor, bases: Any, downs: Sequence[Tensor], ups: Sequence[Tensor], *_: Any) -> list[Tensor]:
    widths = [len(up) for up in ups] + [sum(_widths(downs))]
    return [x.new_empty(len(x), width) for width in widths]


@torch.library.custom_op("asepsis::grouped_lora_backward", mutates_args=())
def backward(
    grads: Sequence[Tensor],
    x: Tensor | None,
    p: Tensor | None,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    needs_x: bool,
) -> list[Tensor]:
    """Return dx, the dA of all layers as they are stacked ``[W, K]``, and the dB of each; only those that are wanted.

    dx is where ``needs_x``, dA where ``x`` is given, the dB where ``p`` is.
    """
    made: list[Tensor] = []
    with _on(grads[0]):
        grads = [products.rows_of(grad) for grad in grads]
        if needs_x or x is not None:
            down = _stacked(downs)
            dp = grads[0].new_empty(len(grads[0]), len(down))
            for grad, up, scale, block in zip(grads, ups, scales, _blocks(dp, downs), strict=True):
                products.shrink(grad, up, scale, None, masked=False, out=block)
        if needs_x:
            dx = dp @ down.to(dp.dtype)
            for grad, weight in zip(grads, weights, strict=False):
                dx.addmm_(grad, weight.to(dp.dtype))
            made.append(dx)
        if x is not None:
            x = products.rows_of(x)
            made += products.gradient(x, dp, None, like=down, rank_first=True, boundary=None)
        if p is not None:
            for grad, up, block in zip(grads, ups, _blocks(p, downs), strict=True):
                made += products.gradient(grad, block, None, like=up, rank_first=False, boundary=None)
    return made


@backward.register_fake
def _(
    grads: Sequence[Tensor],
    x: Any,
    p: Any,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    weights: Any,
    scales: Any,
    *,
    needs_x: bool,
) -> list[Tensor]:
    features = downs[0].shape[1]
    made = [grads[0].new_empty(len(grads[0]), features)] if needs_x else []
    made += [_stacked(downs)] if x is not None else []
    return made + [up.new_empty(up.shape) for up in ups if p is not None]


def _widths(factors: Sequence[Tensor]) -> list[int]:
    return [Rank.of(len(factor)).width for factor in factors]


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    """Rows of all factors, of each as many as its block has columns, zero beyond its own."""
    parts = []
    for factor, width in zip(factors, _widths(factors), strict=True):
        parts.append(factor)
        if width > len(factor):
            parts.append(factor.new_zeros(width - len(factor), *factor.shape[1:]))
    return torch.cat(parts)


def _blocks(narrow: Tensor, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    return narrow.split(_widths(downs), 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, bases, downs, ups, weights, _, scales = inputs
    # flat here, by list only in backward
    first, n = 1 + len(bases), len(downs)
    needs_a, needs_b = (
        ctx.needs_input_grad[first : first + n],
        ctx.needs_input_grad[first + n : first + 2 * n],
    )
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)
    ctx.counts = len(bases), n, len(weights)
    kept = x if any(needs_a) else None, output[-1] if any(needs_b) else None
    ctx.save_for_backward(*kept, *downs, *ups, *weights, *scales)
    ctx.rows = len(x)


def _backward(ctx: Any, all_grads: list[Tensor | None]) -> tuple[Any, ...]:
    n_bases, n, n_weights = ctx.counts
    x, p, *saved = ctx.saved_tensors
    downs, ups, rest = saved[:n], saved[n : 2 * n], saved[2 * n :]
    weights, scales = rest[:n_weights], rest[n_weights:]
    grads = list(all_grads[:-1])
    none = [None] * n
    given = next((grad for grad in grads if grad is not None), None)
    if given is None:
        return None, [None] * n_bases, none, none, [None] * n_weights, none, none
    needs_x, _, needs_a, needs_b, *_ = ctx.needs_input_grad
    # an output that nobody used is rare, and zeros cost less than a second way through the products
    whole = [given.new_zeros(ctx.rows, len(up)) if g is None else g for g, up in zip(grads, ups, strict=True)]
    made = iter(backward(whole, x, p, downs, ups, weights, scales, needs_x=needs_x))
    dx = next(made) if needs_x else None
    da: list[Tensor | None] = list(none)
    if x is not None:
        blocks = next(made).split(_widths(downs))
        da = [
            block[: len(down)].to(down.dtype) if needed else None
            for block, down, needed in zip(blocks, downs, needs_a, strict=True)
        ]
    db = [next(made) if p is not None else None for _ in ups]
    db = [d if needed else None for d, needed in zip(db, needs_b, strict=True)]
    return dx, grads[:n_bases], da, db, [None] * n_weights, none, none


forward.register_autograd(_backward, setup_context=_setup_context)


def shipped() -> list[Shipped]:
    """List nothing of its own: its kernels are listed, at its ranks too, with multi-scale LoRA."""
    return []
