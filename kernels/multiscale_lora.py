"""A frozen linear layer plus one scaled low-rank product: LoRA, multi-scale LoRA and several adapters at once.

Contract: with ``x [..., I]``, ``W [O, I]``, ``b [O]``, ``A [R, I]``, ``B [O, R]`` and a constant ``s [R]``,

    y  = x W^T + b + ((x A^T) * s) B^T             y  [..., O]
    dx = g W + p A        with p = g (B * s)       dx [..., I]
    dA = p^T x                                     dA [R, I], in A's dtype
    dB = (g^T h) * s      with h = x A^T           dB [O, R], in B's dtype

summed over the rows, M of them once the leading axes of ``x`` are flattened. The sum over scales
``sum_s c k_s R_s (L_s x)`` is this formula with the L_s stacked along the rows of A, the R_s along the columns
of B, and ``s`` the c k_s, each repeated for the rows of its scale; so a layer with any number of scales costs two
skinny products forward, and no ``[O, I]`` delta exists.

Dtypes: everything is computed in the dtype of autocast where it is on for x's device (float64 is left alone, as
autocast does), else in x's; y and dx have that dtype. ``s`` is folded into B in float32 before the cast, since the
activations would otherwise be rounded once more. h is kept in the compute dtype. dA and dB are products in the wider
of the compute and the parameter dtype and are never rounded on the way: the operands are upcast. On a CPU in bf16
that costs 5 to 10 % of the layer's backward at rank 8 and about 20 % at rank 72, and saves a relative error of 2e-3.
Kept for backward are x and h, not y; W, A and B are kept as they came and cast again.

With dropout ``D = keep / q`` is the mask of :mod:`asepsis.kernels._dropout` over the share that it keeps; beside A stands
``D x`` for x, and ``D * (p A)`` for p A in dx. One mask serves all rows of A, where PEFT draws one for each adapter. It is
made from the seed again in backward.

The Triton path makes P = h * s and p in float32 and rounds them once; it keeps P for h. It takes no float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from asepsis.errors import ConfigError, DataError
from asepsis.kernels import _calibration, _dropout
from asepsis.kernels._dispatch import Backend, no_triton, select


@dataclass(frozen=True, eq=False)
class SetAside:
    """Where the parameter gradients of the rows from ``boundary`` on go, instead of into the returned ones.

    One pass over training rows followed by reference rows so gives both gradients apart.

    Attributes
    ----------
    boundary
        Rows of ``x`` flattened to ``[M, I]``, 0 to ``M``; the rows before it give the gradients that autograd sees.
    lora_a, lora_b
        ``[R, I]`` and ``[O, R]``, usually float32. Each backward adds to them in place, as autograd adds to ``.grad``.
        One whose parameter takes no gradient is left alone.
    """

    boundary: int
    lora_a: Tensor
    lora_b: Tensor


def multiscale_lora(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scale: Tensor,
    *,
    base_output: Tensor | None = None,
    set_aside: SetAside | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """``x W^T + b + ((x A^T) * scale) B^T``, differentiable once in ``x``, ``lora_a``, ``lora_b``, ``base_output``.

    Parameters
    ----------
    x
        ``[..., I]``, any floating dtype and strides.
    weight
        ``[O, I]``, frozen, any floating dtype and strides; None where ``base_output`` is given.
    bias
        ``[O]``, frozen; None where there is none or ``base_output`` is given, which holds it already.
    lora_a, lora_b
        ``[R, I]`` and ``[O, R]``, any floating dtype.
    scale
        ``[R]`` float32, never trained.
    base_output
        ``[..., O]``: what the base layer gave for ``x``, for a base whose weight is no plain matrix (quantized) or
        is trained. Its gradient passes through unchanged.
    set_aside
        Splits the gradients of ``lora_a`` and ``lora_b`` by rows; ``x`` gets all of its own either way.
    dropout
        Share of x that the branch does not see, at least 0 and less than 1; in steps of 1/65536. The base sees all of x.
    seed
        0-dim int64 on x's device: equal seeds drop equal elements. Wanted with ``dropout``, not read without.
    backend
        ``"triton"`` runs on NVIDIA GPUs in float32, float16 and bfloat16. ``"auto"`` takes it where it was measured on this
        GPU to be no slower than torch, which is ``"reference"``; dropout is decided as without: the mask costs torch more.

    Returns
    -------
    Tensor
        ``[..., O]`` in the compute dtype (see the module).

    Raises
    ------
    DataError
        The shapes, dtypes or devices do not go together, or the boundary is outside ``0..M``.
    ConfigError
        Not exactly one of ``weight`` and ``base_output`` is given, something frozen requires a gradient, dropout is out of
        range or has no seed.
    BackendError
        The backend that was asked for cannot run.
    """
    _check(x, weight, bias, lora_a, lora_b, scale, base_output, set_aside)
    _check_dropout(x, dropout, seed)
    dtype = _compute_dtype(x)
    tensors = (x, weight, bias, lora_a, lora_b, scale)
    refusal = _no_triton(tensors, dtype, backend)
    path = select("multiscale_lora", backend, {"triton": refusal, "reference": None})
    rows = x.to(dtype).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if base_output is not None:
        base_output = base_output.to(dtype).reshape(len(rows), len(lora_b))
    if path == "triton":
        out = _triton(rows, base_output, lora_a, lora_b, weight, bias, scale, set_aside, dropout, seed)
    else:
        out = _Reference.apply(  # type: ignore[no-untyped-call]
            rows, base_output, lora_a, lora_b, weight, bias, scale, set_aside, dropout, seed
        )
    return out.view(*x.shape[:-1], len(lora_b))


def _triton(
    rows: Tensor,
    base_output: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    set_aside: SetAside | None,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    from asepsis.kernels._triton.multiscale_lora import forward

    aside = (
        (None, None, -1) if set_aside is None else (set_aside.lora_a, set_aside.lora_b, set_aside.boundary)
    )
    inputs = (rows, base_output, lora_a, lora_b, weight, bias, scale, seed, dropout)
    out: Tensor = forward(*inputs, *aside)[0]
    return out


def _no_triton(
    tensors: tuple[Tensor | None, ...],
    dtype: torch.dtype,
    backend: Backend,
    of: tuple[str, int, int] | None = None,
) -> str | None:
    """Return why the Triton path cannot run or, under ``"auto"``, why torch is taken instead.

    ``of`` names the operation and its out features and rank, where they are not those of these tensors.
    """
    x, _, _, lora_a, lora_b, _ = tensors
    assert x is not None
    assert lora_a is not None
    assert lora_b is not None
    if backend == "auto" and x.device.type != "cuda":
        return "it needs an NVIDIA GPU"
    # the driver and the file system cannot be asked while torch.compile traces; where that runs, Triton does
    tracing = torch.compiler.is_compiling() and x.device.type == "cuda"
    refusal = None if tracing else no_triton(*tensors)
    if refusal is not None:
        return refusal
    wide = [t.dtype for t in tensors if t is not None and t.dtype == torch.float64]
    if wide or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return "it computes in float32, float16 and bfloat16 and something here is float64"
    if 0 in (x.shape[-1], *lora_b.shape):
        return "there are no features or no rank"
    if backend == "auto":
        operation, *widths = of or ("multiscale_lora", *lora_b.shape)
        rows = math.prod(x.shape[:-1])
        return _calibration.refusal(operation, dtype, x.device, rows, x.shape[-1], *widths)
    return None


class _Reference(torch.autograd.Function):
    """Rows ``[M, I]``, base output ``[M, O]`` or None; both in the compute dtype already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base_output: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        set_aside: SetAside | None,
        dropout: float,
        seed: Tensor | None,
    ) -> Tensor:
        base_x = x
        with torch.autocast(x.device.type, enabled=False):
            if dropout:
                # what is left is scaled with the scales, which are float32
                scale = scale * _dropout.inverse(dropout)
                x = x.masked_fill(_dropped(x, dropout, seed), 0.0)
            down = x @ lora_a.to(x.dtype).t()  # [M, R]
            up = _scaled(lora_b, scale, x.dtype).t()  # [R, O]
            if base_output is not None:
                out = torch.addmm(base_output, down, up)
            else:
                assert weight is not None
                out = F.linear(base_x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
                out.addmm_(down, up)
        _, _, needs_a, needs_b = ctx.needs_input_grad[:4]
        ctx.save_for_backward(
            base_x if needs_a else None, down if needs_b else None, lora_a, lora_b, weight, scale, seed
        )
        ctx.set_aside, ctx.dropout = set_aside, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down, lora_a, lora_b, weight, scale, seed = ctx.saved_tensors
        needs_x, needs_base, needs_a, needs_b = ctx.needs_input_grad[:4]
        aside: SetAside | None = ctx.set_aside
        dtype, boundary = grad.dtype, len(grad) if aside is None else aside.boundary
        dx: Tensor | None = None
        da: Tensor | None = None
        db: Tensor | None = None
        # backward may be called inside an autocast region, which would round the wide products below
        with torch.autocast(grad.device.type, enabled=False):
            if needs_x or needs_a:
                p = grad @ _scaled(lora_b, scale, dtype)  # [M, R]
                dropped = None
                if ctx.dropout:
                    dropped = _dropped(grad.new_empty(len(grad), lora_a.shape[1]), ctx.dropout, seed)
                if needs_x:
                    dx = p @ lora_a.to(dtype)
                    if dropped is not None:
                        dx.masked_fill_(dropped, 0.0)
                    if weight is not None:
                        dx.addmm_(grad, weight.to(dtype))
                if needs_a:
                    x = x if dropped is None else x.masked_fill(dropped, 0.0)
                    da = _wide_product(p[:boundary], x[:boundary], lora_a.dtype).to(lora_a.dtype)
                    if aside is not None:
                        aside.lora_a.add_(_wide_product(p[boundary:], x[boundary:], lora_a.dtype))
            if needs_b:
                # h^T g and not g^T h: with the narrow side first the product is several times faster on a CPU
                db = _wide_product(down[:boundary], grad[:boundary], lora_b.dtype).t() * scale
                db = db.to(lora_b.dtype).contiguous()
                if aside is not None:
                    rest = _wide_product(down[boundary:], grad[boundary:], lora_b.dtype)
                    aside.lora_b.add_(rest.t() * scale)
        return dx, grad if needs_base else None, da, db, *(None,) * 6


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _scaled(lora_b: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (lora_b * scale).to(dtype)  # promoted to float32 at least, since scale is


def _dropped(x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    assert seed is not None
    return ~_dropout.keep(seed, len(x), x.shape[1], dropout)


def _wide_product(narrow: Tensor, rows: Tensor, parameter: torch.dtype) -> Tensor:
    """``narrow^T rows`` in the wider of their dtype and the parameter's; ``[M, R]``, ``[M, D]`` to ``[R, D]``."""
    wide = torch.promote_types(rows.dtype, parameter)
    return narrow.to(wide).t() @ rows.to(wide)


def _check_dropout(x: Tensor, dropout: float, seed: Tensor | None) -> None:
    if dropout == 0.0:
        return
    _dropout.threshold(dropout)
    if seed is None:
        raise ConfigError(
            "dropout needs a seed: torch.randint(2**62, (), device=x.device), drawn anew for each forward pass"
        )
    if seed.dtype != torch.int64 or seed.dim() != 0 or seed.device != x.device:
        raise DataError(
            f"seed must be a 0-dim int64 tensor on {x.device}, got {seed.dtype} {tuple(seed.shape)} on {seed.device}"
        )


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scale: Tensor,
    base_output: Tensor | None,
    set_aside: SetAside | None,
) -> None:
    if (weight is None) == (base_output is None):
        given = "neither" if weight is None else "both"
        raise ConfigError(f"multiscale_lora takes either weight or base_output, got {given}")
    if bias is not None and base_output is not None:
        raise ConfigError("multiscale_lora got base_output and a bias; add the bias to base_output")
    for name, frozen in (("weight", weight), ("bias", bias), ("scale", scale)):
        if frozen is not None and frozen.requires_grad:
            way_out = "" if name == "scale" else ", or pass what the base layer gives as base_output"
            raise ConfigError(
                f"{name} requires a gradient and gets none here; freeze it (requires_grad_(False)){way_out}"
            )
    if x.dim() < 1 or lora_a.dim() != 2 or lora_b.dim() != 2:
        raise DataError(
            "multiscale_lora takes x [..., I], lora_a [R, I] and lora_b [O, R]; "
            f"got {tuple(x.shape)}, {tuple(lora_a.shape)} and {tuple(lora_b.shape)}"
        )
    features, (rank, outputs) = x.shape[-1], (len(lora_a), len(lora_b))
    wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("x", x, tuple(x.shape)),
        ("lora_a", lora_a, (rank, features)),
        ("lora_b", lora_b, (outputs, rank)),
        ("scale", scale, (rank,)),
        ("weight", weight, (outputs, features)),
        ("bias", bias, (outputs,)),
        ("base_output", base_output, (*x.shape[:-1], outputs)),
    ]
    if set_aside is not None:
        wanted += [("set_aside.lora_a", set_aside.lora_a, (rank, features))]
        wanted += [("set_aside.lora_b", set_aside.lora_b, (outputs, rank))]
        rows = math.prod(x.shape[:-1])
        if not 0 <= set_aside.boundary <= rows:
            raise DataError(f"boundary must lie in 0..{rows}, the rows of x, got {set_aside.boundary}")
    for name, tensor, shape in wanted:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise DataError(
                f"{name} must be {list(shape)} beside x {tuple(x.shape)}, lora_a {tuple(lora_a.shape)} and "
                f"lora_b {tuple(lora_b.shape)}; got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            way_out = "; call a quantized layer and pass base_output" if name == "weight" else ""
            raise DataError(f"{name} must be floating, got {tensor.dtype}{way_out}")
        if tensor.device != x.device:
            raise DataError(f"{name} is on {tensor.device} and x on {x.device}; move one of them")
    if scale.dtype != torch.float32:
        raise DataError(f"scale must be float32, got {scale.dtype}")
