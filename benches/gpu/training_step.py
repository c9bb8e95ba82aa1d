"""A whole MuScleLoRA training step of a Llama: forward, backward, alignment with clean rows, AdamW; goals A5 and A6 and the sum of G.

The model has the shape of Llama 3.2 1B, random weights and no tokenizer: what a step costs does not depend on what the
weights say. Batch and reference rows share one pass, as in training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from benches.gpu.cases import Case, Check, Probe, Target, Work
from benches.gpu.lora_layers import peft_loop
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the model and of a step; ``batch`` rows and as many reference rows."""

    vocabulary: int = 128_256
    width: int = 2048
    layers: int = 16
    heads: int = 32
    key_heads: int = 8
    inner: int = 8192
    batch: int = 4
    tokens: int = 512
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    rank: int = 16
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16


class Block(nn.Module):
    """One decoder block: RMS norm, grouped attention with rotary positions, gated feed-forward."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads, self.key_heads, self.size = s.heads, s.key_heads, s.width // s.heads
        make = {"bias": False, "device": s.device, "dtype": s.dtype}
        self.norms = nn.ModuleList(nn.RMSNorm(s.width, device=s.device, dtype=s.dtype) for _ in range(2))
        self.q = nn.Linear(s.width, s.width, **make)  # type: ignore[arg-type]
        self.k, self.v = (nn.Linear(s.width, s.key_heads * self.size, **make) for _ in range(2))  # type: ignore[arg-type]
        self.o = nn.Linear(s.width, s.width, **make)  # type: ignore[arg-type]
        self.gate, self.up = (nn.Linear(s.width, s.inner, **make) for _ in range(2))  # type: ignore[arg-type]
        self.down = nn.Linear(s.inner, s.width, **make)  # type: ignore[arg-type]

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        h = self.norms[0](x)
        q, k, v = (
            projection(h).unflatten(-1, (n, self.size)).transpose(1, 2)
            for projection, n in ((self.q, self.heads), (self.k, self.key_heads), (self.v, self.key_heads))
        )
        q, k = (_rotate(t, turn) for t in (q, k))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(seen.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """A causal language model of the shape of Llama, with weights drawn small."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(s.vocabulary, s.width, device=s.device, dtype=s.dtype)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width, device=s.device, dtype=s.dtype)
        size = s.width // s.heads
        at = torch.arange(s.tokens, device=s.device)[:, None].float()
        angle = at * 10_000.0 ** (-torch.arange(0, size, 2, device=s.device).float() / size)
        self.turn = angle.cos().to(s.dtype), angle.sin().to(s.dtype)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the hidden states ``[B, T, D]``; the output layer is the embedding."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.turn)
        hidden: Tensor = self.norm(x)
        return hidden


class Loop(nn.Module):
    """The same low-rank layer as PEFT computes it: adapter after adapter, float32 as shipped."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.base, self.scaling = layer.base, [float(s) for s in layer.scale[:: layer.branch.rank]]
        rank = layer.branch.rank
        self.downs = nn.ParameterList(part.clone() for part in layer.lora_A.detach().split(rank))
        self.ups = nn.ParameterList(part.contiguous() for part in layer.lora_B.detach().split(rank, 1))

    def forward(self, x: Tensor) -> Tensor:
        return peft_loop(x, self.base.weight, list(self.downs), list(self.ups), self.scaling)


class Step:
    """One way of a training step on a model of its own."""

    def __init__(self, s: Shape, backend: str) -> None:
        from asepsis.core import lora
        from asepsis.kernels import Segments

        torch.manual_seed(0)
        self.shape, self.backend = s, backend
        self.model = Llama(s)
        self.looped = backend == "loop"
        self.passes = 2 if backend in ("loop", "two passes") else 1
        self.kernels = "reference" if backend == "reference" else "auto"
        names = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)]
        branch = lora.Branch(rank=s.rank, scales=s.scales, init="reference")
        self.groups = lora.insert(self.model, dict.fromkeys(names, branch))
        if self.looped:
            for name, layer in lora.remove(self.model).items():
                parent, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, Loop(layer))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        sizes = [p.numel() for p in self.parameters]
        self.grads, self.reference = (torch.zeros(sum(sizes), device=s.device) for _ in range(2))
        self.segments = Segments.of(sizes, s.device)
        for p, g, r in zip(
            self.parameters, self.grads.split(sizes), self.reference.split(sizes), strict=True
        ):
            p.grad = g.view_as(p)
            self.groups.aside[p] = r.view_as(p)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.tokens = torch.randint(s.vocabulary, (2 * s.batch, s.tokens + 1), device=s.device)

    def __call__(self) -> Tensor:
        """Take the step and return the loss of the batch."""
        self.grads.zero_()
        self.reference.zero_()
        half = self.shape.batch
        if self.backend == "plain":
            # the doubled batch without a reference: what a pass over as many rows costs anyone
            with using(self.kernels):
                loss = self._loss(self.tokens)
                loss.backward()
            self.optimizer.step()
            return loss.detach()
        if self.passes == 2:
            # PEFT cannot tell the rows apart: two passes, the reference's gradients set aside in between
            with using(self.kernels):
                clean = self._loss(self.tokens[half:])
                clean.backward()
                self.reference.copy_(self.grads)
                self.grads.zero_()
                loss = self._loss(self.tokens[:half])
                loss.backward()
        else:
            self.groups.samples, self.groups.total = half, 2 * half
            with using(self.kernels):
                hidden = self.model(self.tokens[:, :-1])
                loss, clean = (
                    self._of(part, rows)
                    for part, rows in (
                        (hidden[:half], self.tokens[:half]),
                        (hidden[half:], self.tokens[half:]),
                    )
                )
                (loss + clean).backward()
        self.align(clean.detach())
        self.optimizer.step()
        return loss.detach()

    def align(self, clean: Tensor) -> None:
        """Turn the batch's gradients toward the reference's."""
        from asepsis.kernels import gradient_alignment

        backend: Any = "auto" if self.backend in ("auto", "two passes") else "reference"
        gradient_alignment(self.grads, self.reference, self.segments, reference_loss=clean, backend=backend)

    def _loss(self, tokens: Tensor) -> Tensor:
        return self._of(self.model(tokens[:, :-1]), tokens)

    def _of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = F.linear(hidden, self.model.embed.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class using:
    """Within, the multi-scale layers run on this path."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __enter__(self) -> None:
        from asepsis.core import lora

        self._before = lora.multiscale_lora
        lora.multiscale_lora = functools.partial(self._before, backend=self.backend)  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        from asepsis.core import lora

        lora.multiscale_lora = self._before  # type: ignore[attr-defined]


WAYS: Mapping[str, str] = {
    "ours": "auto",
    "stacked torch": "reference",
    "PEFT's loop": "loop",
    "two passes": "two passes",
}


def verify(shape: Shape | None = None) -> Iterator[Check]:
    """Five steps of a small model end at one loss, whichever way."""
    small = shape or Shape(vocabulary=512, width=256, layers=2, heads=4, key_heads=2, inner=512, tokens=64)
    ends = {}
    for name, backend in WAYS.items():
        step = Step(small, backend)
        ends[name] = [float(step()) for _ in range(5)][-1]
    for name in ("ours", "PEFT's loop", "two passes"):
        error = abs(ends[name] - ends["stacked torch"]) / ends["stacked torch"]
        yield Check(name=f"loss after five steps, {name} against stacked torch", error=error, allowed=1e-2)


def cases() -> Iterator[Case | Probe]:
    """One case: the steps keep 1.2 billion weights each."""
    shape = Shape()
    yield Case(
        name="step 1B",
        why="what a user waits for: all layers, attention, loss, alignment and optimizer together",
        make=lambda: steps(shape),
        settings={
            "batch": shape.batch,
            "tokens": shape.tokens,
            "scales": len(shape.scales),
            "rank": shape.rank,
        },
        targets=(
            Target(goal="step", of="PEFT's loop", to="ours", bound=1.0),
            Target(goal="step", of="stacked torch", to="ours", bound=0.98),
            Target(goal="A5", of="alignment alone", to="ours", bound=0.005, wanted="at most"),
            Target(goal="A6", of="ours", to="plain step, doubled batch", bound=1.03, wanted="at most"),
            Target(goal="A6b", of="two passes", to="ours", bound=1.3),
        ),
        graph=False,
        rounds=15,
    )
    yield Probe(name="step 1B: memory", why="peak of a step by way", run=lambda: memory(shape), settings={})


def steps(shape: Shape) -> dict[str, Work]:
    """The ways of a step, the alignment in it, and a step without one on as many rows."""
    made: dict[str, Step] = {name: Step(shape, backend) for name, backend in WAYS.items()}
    ours, loss = made["ours"], torch.ones((), device=shape.device)
    return {
        **made,
        "plain step, doubled batch": Step(shape, "plain"),
        "alignment alone": lambda: ours.align(loss),
    }


def memory(shape: Shape) -> dict[str, int]:
    """Peak bytes of the second step."""
    found = {}
    for name, backend in WAYS.items():
        step: Callable[[], Tensor] = Step(shape, backend)
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        found[f"{name}, bytes"] = torch.cuda.max_memory_allocated()
    return found


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
