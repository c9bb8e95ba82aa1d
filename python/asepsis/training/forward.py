"""One micro-batch through the model: per-sample losses, and the precision it runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asepsis.core.losses import LossRule
from asepsis.core.placement import head_of
from asepsis.errors import BackendError, ConfigError, DefenseInert
from asepsis.kernels import sample_loss
from asepsis.training.collate import Batch
from asepsis.training.states import losses_without_logits

Precision = Literal["auto", "fp32", "bf16"]


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the autocast type. ``"auto"`` is bf16 where the device multiplies it natively, fp32 elsewhere."""
    if precision == "fp32":
        return torch.float32
    if precision not in ("auto", "bf16"):
        raise ConfigError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _cpu_multiplies_bf16()
    if precision == "bf16" and device.type == "cuda" and not fast:
        raise BackendError("precision='bf16' was asked for, but this GPU has no bf16; use 'fp32' or 'auto'")
    return torch.bfloat16 if precision == "bf16" or fast else torch.float32


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 products: AMX (about 8 times fp32, measured) or AVX-512 BF16 (about 1.5 times)."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast matrix products to ``dtype``; nothing at all for fp32."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype):
        yield


@contextlib.contextmanager
def full_precision_head(model: nn.Module) -> Iterator[None]:
    """Compute the output layer in fp32 inside autocast.

    bf16 logits have 8 bits: with two classes only a few hundred distinct losses are left and a ranking is mostly
    ties. The body may stay in bf16; its last product may not.
    """
    outer: Any = model
    _, head = head_of(outer.get_base_model() if hasattr(outer, "get_base_model") else outer)
    entered: list[Any] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        off = torch.autocast(args[0].device.type, enabled=False)
        off.__enter__()  # type: ignore[no-untyped-call]
        entered.append(off)
        own = next(head.parameters()).dtype
        return (args[0].to(own), *args[1:])

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    handles = (head.register_forward_pre_hook(enter), head.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sample_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the model and return ``(total [B] fp32, count [B] int64)``: summed loss and number of targets."""
    lean = losses_without_logits(model, batch)
    if lean is not None:
        return lean
    return losses_of(model(**batch.inputs).logits, batch)


def losses_of(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what :func:`sample_losses` does, of logits [B, C] or [B, T, V] that are there already."""
    if batch.labels.ndim == 1:
        return sample_loss(logits, batch.labels)
    return sample_loss(logits[:, :-1], batch.labels[:, 1:])


def mean_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return each sample's loss per target [B]; 0 where it has none."""
    total, count = sample_losses(model, batch)
    return total / count.clamp(min=1)


def weighted_loss(losses: Tensor, batch: Batch, rule: LossRule) -> Tensor:
    """Return what a batch adds to its step's loss: per-sample losses [B] shaped by the rule and weighed, 0-dim."""
    return (batch.weight * rule.shape(losses, batch.isolated)).sum()


def check_targets(totals: Tensor) -> None:
    """Raise when a whole step has nothing to learn: every response was cut away or empty."""
    if float(totals.sum()) == 0:
        raise DefenseInert("a step had no target token at all; raise max_length or check the response column")
