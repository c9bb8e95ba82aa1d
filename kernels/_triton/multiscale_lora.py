"""Multi-scale LoRA in Triton: two custom operators, so that torch.compile and checkpointing see through them.

The scale is applied where the narrow matrices are made, in float32:

    P  = (x A^T) * s        y  = x W^T + b + P B^T        dB = g^T P
    dP = (g B) * s          dx = g W + dP A               dA = dP^T x

P and dP are ``[M, R]`` and all that is stored beyond inputs and results. Two routes make y and dx: ``"fused"`` is one
Triton product with the low-rank one in its epilogue, ``"accumulate"`` a library product to which the low-rank one is
added in place (``addmm_``). Everything narrow is ours in both. With dropout every ``x`` beside A is a masked one; the mask
is drawn again in backward from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from asepsis.kernels._triton import _lora_products as products
from asepsis.kernels._triton import _routes
from asepsis.kernels._triton._lora_launch import Mask
from asepsis.kernels._triton._lora_shipped import shipped as shipped
from asepsis.kernels._triton._lora_tiles import Rank


@torch.library.custom_op("asepsis::multiscale_lora", mutates_args=())
def forward(
    x: Tensor,
    base: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    seed: Tensor | None,
    dropout: float,
    aside_a: Tensor | None,
    aside_b: Tensor | None,
    boundary: int,
) -> tuple[Tensor, Tensor]:
    """Return y ``[M, O]`` and P ``[M, width]``; what is for backward alone is not read here."""
    with _on(x):
        x, mask, dtype = products.rows_of(x), Mask.of(seed, dropout), x.dtype
        p = products.shrink(x, lora_a.t(), scale, mask, masked=True)
        narrow, up = p[:, : len(lora_a)], lora_b.to(dtype).t()
        if base is not None:
            return torch.addmm(base, narrow, up), p
        assert weight is not None
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if _plan(x, lora_a, lora_b, mask).forward == "fused":
            return products.linear(x, weight, bias, p, lora_b, None), p
        return F.linear(x, weight, bias).addmm_(narrow, up), p


@forward.register_fake
def _(x: Tensor, base: Any, lora_a: Tensor, lora_b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(lora_b)), x.new_empty(len(x), Rank.of(len(lora_a)).width)


@torch.library.custom_op("asepsis::multiscale_lora_backward", mutates_args=())
def backward(
    grad: Tensor,
    x: Tensor | None,
    p: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    seed: Tensor | None,
    dropout: float,
    *,
    needs_x: bool,
    boundary: int,
) -> list[Tensor]:
    """Return dx, dA, dB and, float32, dA and dB of the rows from ``boundary`` on; only those that are wanted, in this order.

    dx is where ``needs_x``, dA where ``x`` is given, dB where ``p`` is, the others where ``boundary`` is not negative.
    """
    made: list[Tensor] = []
    aside: list[Tensor] = []
    cut = None if boundary < 0 else boundary
    with _on(grad):
        grad, mask = products.rows_of(grad), Mask.of(seed, dropout)
        if needs_x or x is not None:
            dp = products.shrink(grad, lora_b, scale, mask, masked=False)
        if needs_x:
            made.append(_input_gradient(grad, dp, lora_a, lora_b, weight, mask))
        if x is not None:
            x = products.rows_of(x)
            mine, *theirs = products.gradient(x, dp, mask, like=lora_a, rank_first=True, boundary=cut)
            made, aside = [*made, mine], [*aside, *theirs]
        if p is not None:
            # P was made of what was kept, so nothing is masked here
            mine, *theirs = products.gradient(grad, p, None, like=lora_b, rank_first=False, boundary=cut)
            made, aside = [*made, mine], [*aside, *theirs]
    return made + aside


def _plan(rows: Tensor, lora_a: Tensor, lora_b: Tensor, mask: Mask | None) -> _routes.Plan:
    # here and not where the operator is called: sizes are numbers now, also under torch.compile
    return _routes.plan(_routes.layer_of(rows, lora_a, lora_b, dropout=mask is not None))


def _input_gradient(
    grad: Tensor, dp: Tensor, lora_a: Tensor, lora_b: Tensor, weight: Tensor | None, mask: Mask | None
) -> Tensor:
    dtype, narrow = grad.dtype, dp[:, : len(lora_a)]
    if weight is None:
        if mask is None:
            return narrow @ lora_a.to(dtype)
        return products.expand(dp, lora_a.t(), mask, grad.new_empty(len(grad), lora_a.shape[1]), add=False)
    if _plan(grad, lora_a, lora_b, mask).backward == "fused":
        return products.linear(grad, weight.to(dtype).t(), None, dp, lora_a.t(), mask)
    dx = grad @ weight.to(dtype)
    if mask is None:
        return dx.addmm_(narrow, lora_a.to(dtype))
    return products.expand(dp, lora_a.t(), mask, dx, add=True)


@backward.register_fake
def _(
    grad: Tensor,
    x: Tensor | None,
    p: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    weight: Any,
    scale: Any,
    seed: Any,
    dropout: Any,
    *,
    needs_x: bool,
    boundary: int,
) -> list[Tensor]:
    made = [grad.new_empty(len(grad), lora_a.shape[1])] if needs_x else []
    factors = [f for f, given in ((lora_a, x), (lora_b, p)) if given is not None]
    made += [f.new_empty(f.shape) for f in factors]
    return made + [f.new_empty(f.shape, dtype=torch.float32) for f in factors if boundary >= 0]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, lora_a, lora_b, weight, _, scale, seed, ctx.dropout, *aside = inputs
    needs_a, needs_b = ctx.needs_input_grad[2:4]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    # W and A serve dx alone when A is frozen, but holding a parameter costs nothing
    ctx.save_for_backward(
        x if needs_a else None, output[1] if needs_b else None, lora_a, lora_b, weight, scale, seed
    )
    # not among the saved ones: they change in place, once for each backward
    ctx.aside_a, ctx.aside_b, ctx.boundary = aside


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    x, p, lora_a, lora_b, weight, scale, seed = ctx.saved_tensors
    needs_x, needs_base, needs_a, needs_b = ctx.needs_input_grad[:4]
    frozen = (lora_a, lora_b, weight, scale, seed, ctx.dropout)
    made = iter(backward(grad, x, p, *frozen, needs_x=needs_x, boundary=ctx.boundary))
    dx = next(made) if needs_x else None
    da = next(made) if needs_a else None
    db = next(made) if needs_b else None
    for needed, aside in ((needs_a, ctx.aside_a), (needs_b, ctx.aside_b)):
        if needed and ctx.boundary >= 0:
            aside.add_(next(made))
    return dx, grad if needs_base else None, da, db, *(None,) * 8


forward.register_autograd(_backward, setup_context=_setup_context)


@contextmanager
def _on(tensor: Tensor) -> Iterator[None]:
    """Launch on the tensor's device, without autocast: the operands have their dtypes already."""
    with torch.autocast(tensor.device.type, enabled=False):
        if tensor.is_cuda:
            with torch.cuda.device(tensor.device):
                yield
        else:
            yield
