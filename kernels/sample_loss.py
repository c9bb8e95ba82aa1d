"""Cross-entropy per sample: the loss ledger's input.

Contract: for row ``b``, ``total[b] = sum_t -log softmax(float32(logits[b, t]))[labels[b, t]]`` over the
positions whose label is not ``ignore_index``, and ``count[b]`` is how many these are. Both are returned,
since a sum and a count give every mean but a mean gives no sum. Labels are used as they stand: for a causal
model the caller has shifted them. The upcast comes first because bf16 logits quantize small losses into a few
hundred values, full of exact ties. Where rows hold several samples packed together, ``segments`` say which position is
whose, and the sums are by sample (:mod:`asepsis.kernels._packed`).

:func:`linear_sample_loss` is the same of ``logits = hidden W^T + bias``, which are never there all at once: with

    q[b, t, v] = (softmax(logits[b, t])[v] - (v == labels[b, t])) * dtotal[b]       0 where ignored

its gradients are ``dhidden = q W``, ``dW = sum_bt q[b, t]^T hidden[b, t]``, ``dbias = sum_bt q[b, t]``. Products are taken
in the dtype of autocast where it is on, else in that of ``hidden``, and ``q`` is rounded to it; what is summed over
positions is summed in float32. The reference rounds logits to that dtype as a linear layer would; a fast path need not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from asepsis.errors import DataError
from asepsis.kernels import _calibration, _packed
from asepsis.kernels._dispatch import Backend, no_triton, select

_CHUNK_ELEMENTS = 1 << 24  # 64 MiB of float32 logits at a time


def sample_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    segments: Tensor | None = None,
    n_segments: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Sum of float32 cross-entropy per sample, and the number of positions in the sum. Differentiable.

    Parameters
    ----------
    logits
        ``[B, C]``, or ``[B, T, V]`` for a language model; any floating dtype.
    labels
        ``[B]`` or ``[B, T]`` integer classes, already shifted to stand at the position that predicts them.
    ignore_index
        Label of the positions that do not count.
    segments, n_segments
        For packed rows: integers like labels, the sample of each position from 0 to ``n_segments - 1`` or negative for none,
        and how many samples there are. A number beyond makes every total NaN.
    backend
        ``"reference"`` is the only path there is. Three-dimensional logits are upcast a slice of positions at
        a time, so without gradients no whole float32 copy exists.

    Returns
    -------
    total : Tensor
        ``[B]`` float32, or ``[n_segments]``; 0 for a sample with no position that counts.
    count : Tensor
        ``[B]`` or ``[n_segments]`` int64.

    Raises
    ------
    DataError
        The shapes do not go together, or the dtypes are not floating and integer.
    ConfigError
        Only one of segments and n_segments is given.
    BackendError
        The backend that was asked for cannot run.
    """
    if logits.dim() not in (2, 3) or labels.shape != logits.shape[:-1]:
        raise DataError(
            "sample_loss takes logits [B, C] with labels [B], or logits [B, T, V] with labels [B, T]; "
            f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        )
    if not logits.is_floating_point() or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"logits must be floating and labels integer, got {logits.dtype} and {labels.dtype}")
    _packed.check(labels, segments, n_segments)
    select("sample_loss", backend, {"reference": None})
    if logits.dim() == 2:
        logits, labels = logits.unsqueeze(1), labels.unsqueeze(1)
    losses, counted = _losses(logits, labels.long(), ignore_index), labels != ignore_index
    if segments is None or n_segments is None:
        return losses.sum(1), counted.sum(1)
    return _packed.sums(losses.flatten(), counted.flatten(), segments.flatten(), n_segments)


def _losses(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Losses of ``[B, T]`` positions."""
    n, positions, classes = logits.shape
    step = max(1, _CHUNK_ELEMENTS // max(1, n * classes))
    made = [torch.zeros(n, 0, dtype=torch.float32, device=logits.device)]
    for start in range(0, positions, step):
        part = logits[:, start : start + step].float()  # [B, t, V]
        wanted = labels[:, start : start + step]  # [B, t]
        losses = F.cross_entropy(
            part.flatten(0, 1), wanted.flatten(), ignore_index=ignore_index, reduction="none"
        )
        made.append(losses.view(wanted.shape))
    return torch.cat(made, 1)


def linear_sample_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    segments: Tensor | None = None,
    n_segments: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`sample_loss` of ``hidden @ weight.T + bias``, without ever holding all logits. Differentiable once.

    Parameters
    ----------
    hidden
        ``[B, D]``, or ``[B, T, D]`` for a language model; any floating dtype.
    weight, bias
        ``[V, D]`` and ``[V]`` or None, the output layer's; of hidden's dtype unless autocast is on.
    labels
        ``[B]`` or ``[B, T]`` integer classes, already shifted to stand at the position that predicts them.
    ignore_index
        Label of the positions that do not count.
    segments, n_segments
        For packed rows: integers like labels, the sample of each position from 0 to ``n_segments - 1`` or negative for none,
        and how many samples there are. A number beyond makes every total NaN.
    backend
        ``"triton"`` runs on NVIDIA GPUs, ``"auto"`` takes it where it was measured on this GPU to be no slower than torch.
        The reference bounds memory too: it holds the logits of as many positions as fit 64 MiB in float32, forward and
        backward.

    Returns
    -------
    total : Tensor
        ``[B]`` float32, or ``[n_segments]``; 0 for a sample with no position that counts.
    count : Tensor
        ``[B]`` or ``[n_segments]`` int64.

    Raises
    ------
    DataError
        The shapes, dtypes or devices do not go together.
    ConfigError
        Only one of segments and n_segments is given.
    BackendError
        The backend that was asked for cannot run.
    """
    _check_linear(hidden, weight, labels, bias)
    _packed.check(labels, segments, n_segments)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    others = [t.dtype for t in (weight, bias) if t is not None]
    if dtype == hidden.dtype and not torch.is_autocast_enabled(kind) and {*others} != {dtype}:
        raise DataError(
            f"hidden is {hidden.dtype} and the output layer {others[0]}: cast one, or use autocast"
        )
    refusal = no_triton(hidden, weight, labels, bias)
    if refusal is None and dtype not in (torch.float32, torch.float16, torch.bfloat16):
        refusal = f"the products are {dtype}, it takes float32, float16 and bfloat16"
    if refusal is None and backend == "auto":
        sizes = math.prod(hidden.shape[:-1]), hidden.shape[-1], len(weight)
        refusal = _calibration.refusal("linear_sample_loss", dtype, hidden.device, *sizes)
    path = select("linear_sample_loss", backend, {"triton": refusal, "reference": None})

    flat = hidden.to(dtype).reshape(-1, hidden.shape[-1]).contiguous()
    wanted = labels.long().reshape(-1).contiguous()
    layer = weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous()
    if path == "triton":
        from asepsis.kernels._triton.sample_loss import position_losses

        losses = position_losses(flat, *layer, wanted, ignore_index)[0]
    else:
        losses = _Chunked.apply(flat, *layer, wanted, ignore_index)  # type: ignore[no-untyped-call]
    counted = labels != ignore_index
    if segments is not None and n_segments is not None:
        return _packed.sums(losses, counted.flatten(), segments.flatten(), n_segments)
    if labels.dim() == 1:
        return losses, counted.long()
    return losses.view(labels.shape).sum(1), counted.sum(1)


class _Chunked(torch.autograd.Function):
    """Positions ``[N, D]`` to their losses ``[N]``, multiplying the logits once more on the way back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.ignore_index = ignore_index
        losses = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        for at in _chunks(hidden, weight):
            losses[at] = F.cross_entropy(
                _product(hidden[at], weight, bias), labels[at], ignore_index=ignore_index, reduction="none"
            )
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        wider = torch.promote_types(hidden.dtype, torch.float32)
        wanted = ctx.needs_input_grad
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=wider) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=wider) if wanted[2] else None
        for at in _chunks(hidden, weight):
            share = _product(hidden[at], weight, bias).softmax(-1)  # [n, V] float32
            counted = labels[at] != ctx.ignore_index
            chosen = labels[at].where(counted, 0).unsqueeze(1)
            share.scatter_add_(1, chosen, -torch.ones_like(chosen, dtype=share.dtype))
            share = (share * grad[at].unsqueeze(1)).masked_fill(~counted.unsqueeze(1), 0).to(hidden.dtype)
            with torch.autocast(hidden.device.type, enabled=False):
                if of_hidden is not None:
                    of_hidden[at] = share @ weight
                if of_weight is not None:
                    of_weight += share.T @ hidden[at]
                if of_bias is not None:
                    of_bias += share.sum(0, dtype=wider)
        given = (g if g is None else g.to(hidden.dtype) for g in (of_hidden, of_weight, of_bias))
        return (*given, None, None)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // len(weight))
    return [slice(start, start + step) for start in range(0, len(hidden), step)]


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden, weight, bias).float()


def _check_linear(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    fits = weight.dim() == 2 and hidden.dim() in (2, 3) and hidden.shape[-1] == weight.shape[-1]
    fits = fits and min(weight.shape) > 0 and (bias is None or bias.shape == weight.shape[:1])
    if not fits or labels.shape != hidden.shape[:-1]:
        raise DataError(
            "linear_sample_loss takes hidden [B, D] with labels [B], or [B, T, D] with [B, T], weight [V, D] and bias [V]; "
            f"got hidden {tuple(hidden.shape)}, labels {tuple(labels.shape)}, weight {tuple(weight.shape)} and "
            f"bias {None if bias is None else tuple(bias.shape)}"
        )
    floating = all(t is None or t.is_floating_point() for t in (hidden, weight, bias))
    if not floating or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"hidden and the output layer must be floating and labels integer, got {hidden.dtype}, {weight.dtype} "
            f"and {labels.dtype}"
        )
    devices = {t.device for t in (hidden, weight, labels, bias) if t is not None}
    if len(devices) > 1:
        raise DataError(f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")
