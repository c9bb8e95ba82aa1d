"""One linear layer under several low-rank branches, computed the ways that compete: PEFT's loop, stacked torch, ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benches.gpu.cases import Work
from torch import Tensor
from torch.nn import functional as F

#: In and out features of real layers, small to large: BERT, GPT-2 XL, Llama 7B to 70B.
SHAPES = (
    (768, 768),
    (768, 3072),
    (1600, 6400),
    (4096, 4096),
    (4096, 11008),
    (4096, 14336),
    (8192, 28672),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Rows, in and out features, scales, rank of each, dropout, dtype of the adapters."""

    inputs: int
    outputs: int
    rows: int = 8192
    scales: int = 5
    rank: int = 16
    dropout: float = 0.0
    adapters: torch.dtype = torch.bfloat16
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"

    @property
    def name(self) -> str:
        plain = Setting(inputs=self.inputs, outputs=self.outputs)
        parts = [f"{self.inputs}x{self.outputs}"]
        parts += [f"M={self.rows}"] if self.rows != plain.rows else []
        if (self.scales, self.rank) != (plain.scales, plain.rank):
            parts.append(f"S={self.scales} r={self.rank}")
        parts += [f"dropout={self.dropout:g}"] if self.dropout else []
        parts += ["fp32 adapters"] if self.adapters != plain.adapters else []
        return " ".join(parts)

    def about(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        return {
            key: str(value) if isinstance(value, torch.dtype) else value for key, value in vars(self).items()
        }


class Layer:
    """The tensors of one setting. Each ``*_output`` is the layer's forward in one of the ways."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        s = self.setting = setting
        generator = torch.Generator(s.device).manual_seed(seed)

        def draw(*size: int, dtype: torch.dtype = s.dtype, over: int = 1) -> Tensor:
            values = torch.randn(*size, generator=generator, device=s.device, dtype=torch.float32)
            return (values / over**0.5).to(dtype)

        total = s.scales * s.rank
        self.x = draw(s.rows, s.inputs).requires_grad_()
        self.weight = draw(s.outputs, s.inputs, over=s.inputs)
        self.grad = draw(s.rows, s.outputs)
        self.lora_a = draw(total, s.inputs, dtype=s.adapters, over=s.inputs).requires_grad_()
        self.lora_b = draw(s.outputs, total, dtype=s.adapters, over=total).requires_grad_()
        factors = torch.arange(1, s.scales + 1, device=s.device, dtype=torch.float32) / s.scales
        self.scale = factors.repeat_interleave(s.rank)
        self.scaling = [(i + 1) / s.scales for i in range(s.scales)]
        # the loop's own leaves: one pair for each adapter, as PEFT has them
        self.downs = [p.detach().clone().requires_grad_() for p in self.lora_a.split(s.rank)]
        self.ups = [p.detach().clone().contiguous().requires_grad_() for p in self.lora_b.split(s.rank, 1)]
        self.seed = torch.tensor(1234, device=s.device)

    def leaves(self, way: str) -> list[Tensor]:
        """Return what a way's gradients are taken of: x and its factors."""
        return [self.x, *self.downs, *self.ups] if "loop" in way else [self.x, self.lora_a, self.lora_b]

    def base_output(self) -> Tensor:
        """The frozen layer alone."""
        return F.linear(self.x, self.weight)

    def loop_output(self) -> Tensor:
        """What PEFT's ``Linear.forward`` does for plain LoRA, adapter after adapter."""
        return peft_loop(self.x, self.weight, self.downs, self.ups, self.scaling, self.setting.dropout)

    def stacked_output(self) -> Tensor:
        """The same sum with the adapters stacked, in ten lines of torch."""
        out: Tensor = Stacked.apply(self.x, self.weight, self.lora_a, self.lora_b, self.scale)  # type: ignore[no-untyped-call]
        return out

    def our_output(self, backend: str = "auto") -> Tensor:
        """``asepsis.kernels.multiscale_lora``."""
        from asepsis.kernels import multiscale_lora

        s = self.setting
        more: dict[str, Any] = {"dropout": s.dropout, "seed": self.seed if s.dropout else None}
        factors = (self.lora_a, self.lora_b, self.scale)
        return multiscale_lora(self.x, self.weight, None, *factors, backend=backend, **more)  # type: ignore[arg-type]

    def both(self, output: Callable[[], Tensor], way: str) -> Work:
        """Forward and backward."""
        leaves = self.leaves(way)
        return lambda: torch.autograd.grad(output(), leaves, self.grad)

    def back(self, output: Callable[[], Tensor], way: str) -> Work:
        """Backward alone, of one forward that is kept."""
        out, leaves = output(), self.leaves(way)
        return lambda: torch.autograd.grad(out, leaves, self.grad, retain_graph=True)


def peft_loop(
    x: Tensor,
    weight: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scaling: Sequence[float],
    dropout: float = 0.0,
) -> Tensor:
    """PEFT 0.21's forward for active plain adapters: casts to the adapters' dtype and back, rounding after each."""
    result = F.linear(x, weight)
    dtype = result.dtype
    for down, up, scale in zip(downs, ups, scaling, strict=True):
        x = x.to(down.dtype)
        result = result + F.linear(F.linear(F.dropout(x, dropout), down), up) * scale
    return result.to(dtype)


class Stacked(torch.autograd.Function):
    """The strongest plain-torch version: four products forward, six backward, nothing else of the size of the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        p = (x @ a.t()) * scale.to(x.dtype)
        ctx.save_for_backward(x, weight, a, b, scale, p)
        return F.linear(x, weight).addmm_(p, b.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scale, p = ctx.saved_tensors
        dp = (grad @ b) * scale.to(grad.dtype)
        dx = (grad @ weight).addmm_(dp, a)
        return dx, None, dp.t() @ x, grad.t() @ p, None
