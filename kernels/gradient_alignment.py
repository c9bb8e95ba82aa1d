"""Turning a batch's gradients toward those of clean reference rows, for all parameter tensors at once.

Contract: ``g`` and ``r`` are flat arenas ``[E]`` that hold the gradients of ``n`` tensors end to end. Per tensor

    d = <g, r>    rr = <r, r>    gg = <g, g>                     accumulated in the arena's dtype
    nbar = mean of sqrt(rr) over the tensors with 0 < rr < inf   0 where there is none
    full = nbar > min_reference_norm and not reference_loss <= min_reference_loss
    m    = raw_weight if full else raw_weight_below
    g   <- (1 - m) a + m g                                       in place

where ``a`` is, by the rule,

    reflect    |d| / rr * r           the paper's: a conflict changes sign
    drop       max(d, 0) / rr * r
    signed     d / rr * r
    conflict   g - min(d, 0) / rr * r     only what points against r is taken away

A tensor with ``rr == 0`` or ``gg == 0`` (as summed, so below about 1e-23 in float32) keeps g as it is. One whose d, rr, gg or quotient is not finite (a NaN, an
infinity, a square that overflows) gets a gradient of zero and is counted. A NaN reference loss counts as above its
minimum, so that it cannot open the way to raw gradients. With ``granularity="global"`` the finite tensors are treated
as one: d, rr and gg are their sums and decide for all of them; nbar stays the mean over tensors.

No step waits for the device and the number of operations does not depend on ``n``. Sums are taken in two stages over
pieces of at most 4096 elements, in an order that depends on the sizes and the path alone.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from asepsis.errors import ConfigError, DataError
from asepsis.kernels import _calibration
from asepsis.kernels._dispatch import Backend, no_triton, select
from asepsis.kernels._segments import Segments

Rule: TypeAlias = Literal["reflect", "drop", "signed", "conflict"]
Granularity: TypeAlias = Literal["tensor", "global"]


class AlignmentStats(NamedTuple):
    """What one call of :func:`gradient_alignment` did; the fields are the indices of the tensor it returns.

    ``conflict_share`` and ``mean_cosine`` are over the tensors that were aligned, of the d, rr and gg that decided
    (under ``"global"``: those of the sum), and 0 where none was.
    """

    full: bool
    raw_weight: float
    """m, the weight of the raw gradient."""
    reference_norm: float
    """nbar."""
    reference_loss: float
    """NaN where none was given."""
    conflict_share: float
    mean_cosine: float
    n_kept_raw: int
    """Tensors with rr == 0 or gg == 0."""
    n_non_finite: int
    """Tensors whose gradient was set to zero."""

    @classmethod
    def read(cls, stats: Tensor) -> AlignmentStats:
        """Fetch the numbers; waits for the device once."""
        full, weight, norm, loss, conflicts, cosine, kept_raw, non_finite = stats.tolist()
        return cls(bool(full), weight, norm, loss, conflicts, cosine, int(kept_raw), int(non_finite))


@torch.no_grad()
def gradient_alignment(
    grads: Tensor,
    reference: Tensor,
    segments: Segments,
    *,
    rule: Rule = "reflect",
    raw_weight: float = 0.0,
    raw_weight_below: float = 1.0,
    reference_loss: Tensor | None = None,
    min_reference_loss: float = 0.0,
    min_reference_norm: float = 0.0,
    granularity: Granularity = "tensor",
    backend: Backend = "auto",
) -> Tensor:
    """Align ``grads`` with ``reference`` in place, and say what was done.

    Parameters
    ----------
    grads, reference
        ``[E]`` contiguous float32 or float64 on one device, not overlapping. ``grads`` is overwritten.
    segments
        The tensors in the arenas, on the same device.
    rule
        What is made of a tensor's gradient; see the module. ``"reflect"`` is the paper's.
    raw_weight, raw_weight_below
        Weight of the raw gradient, 0 to 1, while the gate is open (``full``) and while it is shut.
    reference_loss
        0-dim floating tensor on the same device; None leaves the gate to the norm alone.
    min_reference_loss, min_reference_norm
        The gate is open while the reference loss and the mean norm of the reference gradients are above these.
    granularity
        ``"tensor"`` aligns each tensor with its own reference (the paper), ``"global"`` all of them as one vector.
    backend
        ``"triton"`` runs on NVIDIA GPUs, for float32: three launches and no temporary of the arenas' size. ``"auto"`` takes
        it where it was measured on this GPU to be no slower than torch.

    Returns
    -------
    Tensor
        ``[8]`` float32 on the device, in the order of :class:`AlignmentStats`, which reads it.

    Raises
    ------
    DataError
        The arenas, the segments or the reference loss do not go together in shape, dtype or device.
    ConfigError
        The rule or granularity does not exist, or a weight or minimum is outside its bounds.
    BackendError
        The backend that was asked for cannot run.
    """
    _check_settings(rule, granularity, raw_weight, raw_weight_below, min_reference_loss, min_reference_norm)
    _check_tensors(grads, reference, segments, reference_loss)
    refusal = no_triton(grads, reference)
    if refusal is None and grads.dtype != torch.float32:
        refusal = f"the arenas are {grads.dtype}, it takes float32"
    if refusal is None and backend == "auto":
        refusal = _calibration.refusal("gradient_alignment", grads.dtype, grads.device, len(grads))
    options = (raw_weight, raw_weight_below, reference_loss, min_reference_loss, min_reference_norm)
    if select("gradient_alignment", backend, {"triton": refusal, "reference": None}) == "triton":
        from asepsis.kernels._triton.gradient_alignment import align

        return align(grads, reference, segments, rule, granularity, *options)
    return _reference(grads, reference, segments, rule, granularity, *options)


def _reference(
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
    # scalars enter by arithmetic and masked_fill alone: torch.where would copy them to the device, and wait
    d, rr, gg = (
        _sums(a * b, segments) for a, b in ((grads, reference), (reference, reference), (grads, grads))
    )
    norms = rr.masked_fill(~rr.isfinite(), 0).sqrt()
    nbar = norms.sum() / (norms > 0).sum().clamp(min=1)
    full = nbar > min_reference_norm
    if reference_loss is not None:
        full = full & ~(reference_loss <= min_reference_loss)
    opened = full.to(grads.dtype)
    m = opened * raw_weight + (1 - opened) * raw_weight_below

    dead = ~(d.isfinite() & rr.isfinite() & gg.isfinite())
    if granularity == "global":
        d, rr, gg = (v.masked_fill(dead, 0).sum().expand(len(v)) for v in (d, rr, gg))
    keep, toward = _coefficients(rule, d, rr)
    live = (rr > 0) & (gg > 0)
    toward = toward.masked_fill(~live, 0)
    dead = dead | ~(toward.isfinite() & rr.isfinite() & gg.isfinite())
    live = live & ~dead
    of_grads = ((1 - m) * keep + m).expand(len(d)).masked_fill(~live, 1)
    of_reference = (1 - m) * toward

    index = segments.tensor_of
    grads.mul_(of_grads.index_select(0, index)).addcmul_(reference, of_reference.index_select(0, index))
    grads.masked_fill_(dead.index_select(0, index), 0)  # a coefficient of 0 would leave NaN a NaN

    n_live = live.sum().clamp(min=1)
    cosines = (d / (rr.sqrt() * gg.sqrt())).masked_fill(~live, 0)
    loss = torch.full_like(nbar, math.nan) if reference_loss is None else reference_loss
    stats = (
        *(full, m, nbar, loss, (live & (d < 0)).sum() / n_live, cosines.sum() / n_live),
        *((~(live | dead)).sum(), dead.sum()),
    )
    return torch.stack([value.to(torch.float32) for value in stats])


def _sums(values: Tensor, segments: Segments) -> Tensor:
    # unsafe: without it the sizes are fetched to be checked; `of` made them
    per_piece = torch.segment_reduce(values, "sum", lengths=segments.piece_sizes, unsafe=True)
    return torch.segment_reduce(per_piece, "sum", lengths=segments.pieces, unsafe=True)


def _coefficients(rule: Rule, d: Tensor, rr: Tensor) -> tuple[float, Tensor]:
    """``(k, t)`` with a = k g + t r."""
    if rule == "reflect":
        return 0.0, d.abs() / rr
    if rule == "drop":
        return 0.0, d.clamp(min=0) / rr
    if rule == "signed":
        return 0.0, d / rr
    return 1.0, -d.clamp(max=0) / rr


def _check_settings(
    rule: str, granularity: str, raw_weight: float, raw_weight_below: float, min_loss: float, min_norm: float
) -> None:
    if rule not in get_args(Rule):
        raise ConfigError(f"rule must be one of {', '.join(get_args(Rule))}; got {rule!r}")
    if granularity not in get_args(Granularity):
        raise ConfigError(
            f"granularity must be one of {', '.join(get_args(Granularity))}; got {granularity!r}"
        )
    for name, weight in (("raw_weight", raw_weight), ("raw_weight_below", raw_weight_below)):
        if not 0 <= weight <= 1:
            raise ConfigError(f"{name} must lie in 0..1, got {weight!r}")
    for name, minimum in (("min_reference_loss", min_loss), ("min_reference_norm", min_norm)):
        if not 0 <= minimum < math.inf:
            raise ConfigError(f"{name} must be finite and at least 0, got {minimum!r}")


def _check_tensors(
    grads: Tensor, reference: Tensor, segments: Segments, reference_loss: Tensor | None
) -> None:
    for name, arena in (("grads", grads), ("reference", reference)):
        if arena.dim() != 1 or arena.dtype not in (torch.float32, torch.float64) or not arena.is_contiguous():
            raise DataError(
                f"{name} must be one contiguous float32 or float64 vector, got {arena.dtype} "
                f"{tuple(arena.shape)} with strides {arena.stride()}"
            )
    if (grads.shape, grads.dtype, grads.device) != (reference.shape, reference.dtype, reference.device):
        raise DataError(
            f"grads ({grads.dtype} {tuple(grads.shape)} on {grads.device}) and reference ({reference.dtype} "
            f"{tuple(reference.shape)} on {reference.device}) must be alike"
        )
    if segments.elements != len(grads):
        raise DataError(f"the sizes add up to {segments.elements} and the arenas hold {len(grads)} elements")
    if segments.tiles.device != grads.device:
        raise DataError(
            f"segments are on {segments.tiles.device} and the arenas on {grads.device}; "
            "build them there: Segments.of(sizes, device)"
        )
    if reference_loss is not None and (reference_loss.dim() != 0 or reference_loss.device != grads.device):
        raise DataError(
            f"reference_loss must be a 0-dim tensor on {grads.device}, got {tuple(reference_loss.shape)} on "
            f"{reference_loss.device}"
        )
