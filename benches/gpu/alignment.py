"""Gradient alignment against ten lines of torch and against the loop over tensors it replaces: goals A1 to A5.

Sides of a case, all on the same arenas: ``triton`` and ``reference`` are this project's two paths; ``foreach`` is the best
that torch's foreach operators give for the paper's rule; ``loop`` is the rule as its formulas read, a handful of operations
and a decision of the host for each tensor; ``copy`` moves 20 bytes an element, which is the floor under all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benches.gpu.calibration import calibrates
from benches.gpu.cases import Case, Check, Probe, Target, Work
from benches.gpu.races import equal_bits

RULES = ("reflect", "drop", "signed", "conflict")
WANTED = {"raw_weight": 0.1, "min_reference_loss": 0.4, "min_reference_norm": 5e-7}


def sizes_of(tensors: int, elements: int) -> tuple[int, ...]:
    """Tensors like the factors of low-rank layers: of a few sizes, multiples of 16."""
    weights = [(1, 1, 1, 1, 2, 3)[i % 6] for i in range(tensors)]
    unit = elements // sum(weights) // 16 * 16
    return tuple(unit * weight for weight in weights)


SMALL = {"64 tensors, 0.5 M": sizes_of(64, 500_000), "8 tensors, 0.03 M": sizes_of(8, 30_000)}
SHAPES = {"448 tensors, 40 M": sizes_of(448, 40_000_000), "512 tensors, 10 M": sizes_of(512, 10_000_000)}


def arenas(sizes: Sequence[int]) -> tuple[Any, Any, Any]:
    """Gradient, reference gradient and loss on the GPU, half of the tensors in conflict."""
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    g, r = torch.randn(2, sum(sizes), device="cuda", generator=generator)
    for i, (one, other) in enumerate(zip(r.split(list(sizes)), g.split(list(sizes)), strict=True)):
        one.add_(other, alpha=0.5 * (-1) ** i)
    return g, r, torch.tensor(0.7, device="cuda")


def verify() -> Iterator[Check]:
    """Every rule against the reference in float64, per tensor; then equal bits."""
    import torch

    from asepsis.kernels import Segments, gradient_alignment

    sizes = (3, 1, 70, 2, 4096, 9000, 5, 1_000_003, *range(1, 5000, 17))
    segments = Segments.of(sizes, "cuda")
    g, r, loss = arenas(sizes)
    for rule in RULES:
        for granularity in ("tensor", "global"):
            made = {}
            for name, dtype, backend in (
                ("exact", torch.float64, "reference"),
                ("eager", torch.float32, "reference"),
                ("triton", torch.float32, "triton"),
                ("again", torch.float32, "triton"),
            ):
                out = g.to(dtype, copy=True)
                settings: dict[str, Any] = {"rule": rule, "granularity": granularity, "reference_loss": loss}
                gradient_alignment(out, r.to(dtype), segments, backend=backend, **settings, **WANTED)
                made[name] = out
            errors = {name: worst(made[name], made["exact"], sizes) for name in ("eager", "triton")}
            allowed = 2 * errors["eager"] + 5e-7
            yield Check(name=f"{rule}, {granularity}", error=errors["triton"], allowed=allowed)
            different = float((made["triton"] != made["again"]).sum())
            yield Check(name=f"{rule}, {granularity}: elements not equal twice", error=different, allowed=0)
    start = g.clone()

    def aligned() -> list[Any]:
        out = start.clone()
        stats = gradient_alignment(out, r, segments, reference_loss=loss, backend="triton", **WANTED)
        return [out, stats]

    yield from equal_bits("aligned gradients", aligned)


def worst(got: Any, exact: Any, sizes: Sequence[int]) -> float:
    """Largest relative error of a tensor; NaN where there is one."""
    import torch

    pairs = zip(got.split(list(sizes)), exact.split(list(sizes)), strict=True)
    errors = torch.stack([(a - b).norm() / b.norm().clamp(min=1e-30) for a, b in pairs])
    return float(errors.max()) if bool(errors.isfinite().all()) else math.nan


def foreach(parts: list[Any], toward: list[Any]) -> None:
    """The paper's rule with full alignment, without waiting for the device."""
    import torch

    products = torch._foreach_mul(parts, toward)
    d = torch.stack([p.sum() for p in products])
    rr = torch.stack(torch._foreach_norm(toward)).square()
    scale = torch.where(rr > 0, 0.9 * d.abs() / rr, torch.zeros_like(rr))
    torch._foreach_mul_(parts, 0.1)
    torch._foreach_add_(parts, torch._foreach_mul(toward, list(scale.unbind())))


def loop(parts: list[Any], toward: list[Any]) -> None:
    """Tensor by tensor as the formulas read: two norms, a product, the host decides."""
    for g, r in zip(parts, toward, strict=True):
        norm = r.norm()
        if float(norm) == 0 or float(g.norm()) == 0:
            continue
        unit = r / norm
        length = (g * unit).sum()
        if float(length) < 0:
            length = -length
        g.copy_(0.9 * length * unit + 0.1 * g)


def sides(sizes: Sequence[int]) -> Callable[[], Mapping[str, Work]]:
    def make() -> Mapping[str, Work]:
        import torch

        from asepsis.kernels import Segments, gradient_alignment

        g, r, loss = arenas(sizes)
        segments = Segments.of(sizes, "cuda")
        parts, toward = list(g.split(list(sizes))), list(r.split(list(sizes)))
        half = 5 * len(g) // 2  # read and written: 20 bytes an element
        spare = torch.empty(2 * half, device="cuda")

        def ours(backend: str) -> Work:
            return lambda: gradient_alignment(g, r, segments, reference_loss=loss, backend=backend, **WANTED)  # type: ignore[arg-type]

        return {
            "triton": ours("triton"),
            "reference": ours("reference"),
            "foreach": lambda: foreach(parts, toward),
            "loop": lambda: loop(parts, toward),
            "copy": lambda: spare[:half].copy_(spare[half:]),
        }

    return make


def milliseconds(sizes: Sequence[int], bound: float) -> Callable[[], dict[str, Any]]:
    """The time itself, which goals A1 and A2 are about, from a flushed cache; the host's, launches and waits."""

    def run() -> dict[str, Any]:
        import torch
        from benches.gpu.timing import CudaClock, captured, host_seconds, in_turns, l2_flush, summary
        from torch.profiler import ProfilerActivity, profile

        work = sides(sizes)()["triton"]
        work()
        spent = in_turns({"triton": work, "graph": captured(work)}, CudaClock(), flush=l2_flush())
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            torch.cuda.synchronize()
        kernels = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        times = {name: summary(taken)["median_us"] / 1e3 for name, taken in spent.items()}
        return {
            "milliseconds": times,
            "wanted_at_most": bound,
            "met": times["graph"] <= bound,
            "floor_at_4.3_TB_per_s": 20 * sum(sizes) / 4.3e12 * 1e3,
            "host_us_of_a_call": host_seconds(work) * 1e6,
            "launches": len(kernels),
            "kernels": kernels,
            "waits_for_the_device": 0,  # one would have been an error above
        }

    return run


def cases() -> Iterator[Case | Probe]:
    """A1 to A4; A5's launches and waits are in the probes, its share of a step is in ``training_step.py``."""
    for (name, sizes), goal, bound in zip(SHAPES.items(), ("A1", "A2"), (0.30, 0.10), strict=True):
        yield Probe(
            name=f"{goal}: {name}, fp32",
            why="time, launches and waits of one call",
            run=milliseconds(sizes, bound),
            settings={"tensors": len(sizes), "elements": sum(sizes)},
        )
    for name, sizes in {**SHAPES, **SMALL}.items():
        counts = calibrates("gradient_alignment", "update", "float32", sum(sizes))
        yield Case(
            name=name,
            why="the paper's rule for all tensors of a step; the loop waits for the device, so it has no graph",
            make=sides(sizes),
            settings={"tensors": len(sizes), "calibrates": counts},
            targets=()
            if name in SMALL
            else (
                Target(goal="A3", of="loop", to="triton", bound=50),
                Target(goal="A4", of="foreach", to="triton", bound=5),
                Target(goal="not below the reference", of="reference", to="triton", bound=1),
                Target(goal="floor", of="triton", to="copy", bound=1.6, wanted="at most"),
            ),
        )
