"""Several frozen linear layers of one input, each with its scaled low-rank product: q, k and v, or gate and up.

Contract: for layers ``j`` with ``W_j [O_j, I]``, ``b_j [O_j]``, ``A_j [R_j, I]``, ``B_j [O_j, R_j]``, ``s_j [R_j]``

    y_j  = x W_j^T + b_j + ((x A_j^T) * s_j) B_j^T
    dx   = sum_j g_j W_j + [p_1 p_2 ..] [A_1; A_2; ..]       with p_j = g_j (B_j * s_j)
    dA_j = p_j^T x            dB_j = (g_j^T h_j) * s_j       with h_j = x A_j^T

which is :func:`asepsis.kernels.multiscale_lora` layer by layer, dtypes and what is kept for backward included. The A_j stand
on each other, so x is read once for all h and once for all dA where a layer each would read it n times; and dx is
accumulated in place, product after product, where autograd would make n matrices of its size and add them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from asepsis.errors import ConfigError
from asepsis.kernels._dispatch import Backend, select
from asepsis.kernels.multiscale_lora import _check, _compute_dtype, _no_triton, _scaled, _wide_product


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupedLayer:
    """One layer of a group; the tensors are those of :func:`asepsis.kernels.multiscale_lora`.

    Attributes
    ----------
    weight, bias
        ``[O, I]`` and ``[O]``, frozen, or None.
    lora_a, lora_b, scale
        ``[R, I]``, ``[O, R]`` and float32 ``[R]``.
    base_output
        ``[..., O]``, instead of weight and bias; in all layers of a group or in none.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    lora_a: Tensor
    lora_b: Tensor
    scale: Tensor
    base_output: Tensor | None = None


def grouped_lora(
    x: Tensor, layers: Sequence[GroupedLayer], *, backend: Backend = "auto"
) -> tuple[Tensor, ...]:
    """Return what each layer makes of ``x``; differentiable once in x and every factor and base output.

    Parameters
    ----------
    x
        ``[..., I]``, any floating dtype and strides.
    layers
        At least one.
    backend
        As of :func:`asepsis.kernels.multiscale_lora`.

    Returns
    -------
    tuple of Tensor
        ``[..., O_j]`` in the compute dtype, in the order of the layers.

    Raises
    ------
    DataError
        The shapes, dtypes or devices of a layer do not go together with ``x``.
    ConfigError
        There is no layer, a layer has not exactly one of weight and base_output, some have the one and some the other, or
        something frozen requires a gradient.
    BackendError
        The backend that was asked for cannot run.
    """
    if not layers:
        raise ConfigError("grouped_lora needs at least one layer, got none")
    for one in layers:
        _check(x, one.weight, one.bias, one.lora_a, one.lora_b, one.scale, one.base_output, None)
    if len({one.weight is None for one in layers}) > 1:
        raise ConfigError(
            "the layers of a group have a weight all of them or a base_output all of them, got both"
        )
    dtype = _compute_dtype(x)
    refusal = _refusal(x, layers, dtype, backend)
    path = select("grouped_lora", backend, {"triton": refusal, "reference": None})
    rows = x.to(dtype).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    bases = [
        None if one.base_output is None else one.base_output.to(dtype).reshape(len(rows), len(one.lora_b))
        for one in layers
    ]
    if path == "triton":
        outs = _triton(rows, bases, layers)
    else:
        fields = ("weight", "bias", "lora_a", "lora_b", "scale")
        flat = [getattr(one, field) for field in fields for one in layers]
        outs = _Reference.apply(rows, *bases, *flat)  # type: ignore[no-untyped-call]
    return tuple(out.view(*x.shape[:-1], out.shape[1]) for out in outs)


def _refusal(x: Tensor, layers: Sequence[GroupedLayer], dtype: torch.dtype, backend: Backend) -> str | None:
    outputs, rank = (sum(sizes) for sizes in zip(*(one.lora_b.shape for one in layers), strict=True))
    for one in layers:
        tensors = (x, one.weight, one.bias, one.lora_a, one.lora_b, one.scale)
        refusal = _no_triton(tensors, dtype, backend, of=("grouped_lora", outputs, rank))
        if refusal is not None:
            return refusal
    return None


def _triton(rows: Tensor, bases: list[Tensor | None], layers: Sequence[GroupedLayer]) -> Sequence[Tensor]:
    from asepsis.kernels._triton.grouped_lora import forward

    # an operator takes lists of tensors, so what is not there is an empty one
    none = rows.new_empty(0)
    made: list[Tensor] = forward(
        rows,
        [base for base in bases if base is not None],
        [one.lora_a for one in layers],
        [one.lora_b for one in layers],
        [one.weight for one in layers if one.weight is not None],
        [none if one.bias is None else one.bias for one in layers],
        [one.scale for one in layers],
    )
    return made[:-1]


class _Reference(torch.autograd.Function):
    """Rows ``[M, I]``, then base outputs, weights, biases, A, B and scales of all layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        bases, weights, biases, downs, ups, scales = _by_kind(tensors)
        outs = []
        with torch.autocast(x.device.type, enabled=False):
            narrow = x @ torch.cat(downs).to(x.dtype).t()  # [M, sum of R]
            parts = torch.split(narrow, [len(down) for down in downs], 1)
            for base, weight, bias, up, scale, part in zip(
                bases, weights, biases, ups, scales, parts, strict=True
            ):
                raised = _scaled(up, scale, x.dtype).t()  # [R, O]
                if base is not None:
                    outs.append(torch.addmm(base, part, raised))
                else:
                    out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
                    outs.append(out.addmm_(part, raised))
        _, _, _, needs_a, needs_b, _ = _by_kind(ctx.needs_input_grad[1:])
        ctx.set_materialize_grads(False)
        kept = x if any(needs_a) else None, narrow if any(needs_b) else None
        ctx.save_for_backward(*kept, *weights, *downs, *ups, *scales)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, narrow, *saved = ctx.saved_tensors
        n = len(grads)
        weights, downs, ups, scales = (saved[i : i + n] for i in range(0, 4 * n, n))
        needs_base, _, _, needs_a, needs_b, _ = _by_kind(ctx.needs_input_grad[1:])
        given = {j: grad for j, grad in enumerate(grads) if grad is not None}
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        made: dict[str, dict[int, Tensor]] = {"a": {}, "b": {}}
        dx: Tensor | None = None
        # backward may be called inside an autocast region, which would round the wide products below
        with torch.autocast(scales[0].device.type, enabled=False):
            if ctx.needs_input_grad[0] or any(needs_a):
                p = torch.cat([grad @ _scaled(ups[j], scales[j], grad.dtype) for j, grad in given.items()], 1)
                down = torch.cat([downs[j] for j in given])
            if ctx.needs_input_grad[0]:
                dx = p @ down.to(p.dtype)
                for j, grad in given.items():
                    if weights[j] is not None:
                        dx.addmm_(grad, weights[j].to(p.dtype))
            if any(needs_a):
                da = torch.split(_wide_product(p, x, down.dtype), [len(downs[j]) for j in given])
                made["a"] = {j: d.to(downs[j].dtype) for j, d in zip(given, da, strict=True) if needs_a[j]}
            parts = [] if narrow is None else torch.split(narrow, [len(down) for down in downs], 1)
            for j, grad in given.items():
                if needs_b[j]:
                    db = _wide_product(parts[j], grad, ups[j].dtype).t() * scales[j]
                    made["b"][j] = db.to(ups[j].dtype).contiguous()
        factors = [made[kind].get(j) for kind in "ab" for j in range(n)]
        of_bases = [g if needed else None for g, needed in zip(grads, needs_base, strict=True)]
        return (dx, *of_bases, *(None,) * (2 * n), *factors, *(None,) * n)


def _by_kind(values: Sequence[Any]) -> list[Any]:
    n = len(values) // 6
    return [values[i : i + n] for i in range(0, 6 * n, n)]
