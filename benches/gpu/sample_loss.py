"""Losses from hidden states against losses from logits: memory and time, forward and backward.

Sides: ``triton`` and ``reference``, in chunks, are the two paths of ``linear_sample_loss``; ``logits`` makes them all and takes
``sample_loss``, as training does without it. There is no goal for the time; the memory is what the operation is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benches.gpu.calibration import calibrates
from benches.gpu.cases import Case, Check, Probe, Target, Work
from benches.gpu.races import equal_bits

# positions, width, vocabulary, share of positions without a label
SHAPES = {
    "8192 x 4096, V 32000": (8192, 4096, 32_000, 0.0),
    "8192 x 4096, V 128256": (8192, 4096, 128_256, 0.0),
    "8192 x 4096, V 128256, half ignored": (8192, 4096, 128_256, 0.5),
    "8192 x 2304, V 256000": (8192, 2304, 256_000, 0.0),
    "2048 x 576, V 49152": (2048, 576, 49_152, 0.0),
    "512 x 4096, V 128256": (512, 4096, 128_256, 0.0),
}
SAMPLES = 16


def inputs(shape: tuple[int, int, int, float], dtype: Any, *, trained: bool) -> tuple[Any, Any, Any]:
    import torch

    positions, width, classes, ignored = shape
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(SAMPLES, positions // SAMPLES, width, device="cuda", generator=generator).to(dtype)
    weight = (torch.randn(classes, width, device="cuda", generator=generator) * 2 / width**0.5).to(dtype)
    labels = torch.randint(classes, hidden.shape[:2], device="cuda", generator=generator)
    labels[torch.rand(labels.shape, device="cuda", generator=generator) < ignored] = -100
    return hidden.requires_grad_(), weight.requires_grad_(trained), labels


def step(way: str, hidden: Any, weight: Any, labels: Any) -> tuple[Any, ...]:
    """Losses and gradients by one of the ways."""
    import torch

    from asepsis.kernels import linear_sample_loss, sample_loss

    if way == "logits":
        total, _ = sample_loss(torch.nn.functional.linear(hidden, weight), labels)
    else:
        total, _ = linear_sample_loss(hidden, weight, labels, backend=way)  # type: ignore[arg-type]
    wanted = [t for t in (hidden, weight) if t.requires_grad]
    return total.detach(), *torch.autograd.grad(total.mean(), wanted)


def verify() -> Iterator[Check]:
    """Losses and both gradients against float64, at most twice as far from it as through the logits; equal bits."""
    import torch

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for shape in ((1600, 256, 5003, 0.3), (1600, 200, 3001, 0.3)):
            hidden, weight, labels = inputs(shape, dtype, trained=True)
            wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
            logits = torch.nn.functional.linear(*wide).log_softmax(-1)
            counted = labels != -100
            chosen = logits.gather(-1, labels.where(counted, 0).unsqueeze(-1)).squeeze(-1)
            total = -(chosen * counted).sum(1)
            exact = (total.detach(), *torch.autograd.grad(total.mean(), wide))
            usual, got, again = (step(way, hidden, weight, labels) for way in ("logits", "triton", "triton"))
            names = ("losses", "gradient of hidden", "gradient of weight")
            for name, a, b, c, e in zip(names, got, usual, again, exact, strict=True):
                label = f"{name}, {dtype}, width {shape[1]}"
                error, other = ((v - e).norm().item() / e.norm().item() for v in (a, b))
                yield Check(name=label, error=error, allowed=2 * other + 5e-7)
                yield Check(name=f"{label}: elements not equal twice", error=float((a != c).sum()), allowed=0)
            yield from packed(hidden, weight, labels)
    given = inputs((1600, 256, 5003, 0.3), torch.bfloat16, trained=True)
    yield from equal_bits("losses and gradients", lambda: step("triton", *given))


def packed(hidden: Any, weight: Any, labels: Any) -> Iterator[Check]:
    """Losses by segments that are the rows, against losses by row."""
    import torch

    from asepsis.kernels import linear_sample_loss

    rows = torch.arange(len(labels), device=labels.device)[:, None].expand(labels.shape)
    wanted, counts = linear_sample_loss(hidden, weight, labels, backend="triton")
    got, counted = linear_sample_loss(
        hidden, weight, labels, segments=rows, n_segments=len(labels), backend="triton"
    )
    error = ((got - wanted).norm() / wanted.norm()).item() + float((counts != counted).sum())
    yield Check(
        name=f"losses of packed samples, {hidden.dtype}, width {weight.shape[1]}", error=error, allowed=1e-6
    )


def sides(shape: tuple[int, int, int, float], *, trained: bool) -> Callable[[], Mapping[str, Work]]:
    def make() -> Mapping[str, Work]:
        import torch

        given = inputs(shape, torch.bfloat16, trained=trained)
        return {way: (lambda way=way: step(way, *given)) for way in ("triton", "reference", "logits")}

    return make


def memory(shape: tuple[int, int, int, float], *, trained: bool) -> Callable[[], dict[str, Any]]:
    """Most memory beyond the inputs and the gradients, MiB, of a forward and a backward pass."""

    def run() -> dict[str, Any]:
        import torch

        found: dict[str, Any] = {}
        for way, work in sides(shape, trained=trained)().items():
            try:
                work()
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                results = work()
                torch.cuda.synchronize()
                kept = sum(t.numel() * t.element_size() for t in results)  # type: ignore[attr-defined]
                found[way] = (torch.cuda.max_memory_allocated() - before - kept) / 2**20
            except torch.cuda.OutOfMemoryError:
                found[way] = "out of memory"
                torch.cuda.empty_cache()
        return {"MiB": found, "all logits in float32 are": shape[0] * shape[2] * 4 / 2**20}

    return run


def cases() -> Iterator[Case | Probe]:
    """Memory first, then times; the output layer frozen, as under low-rank layers, and trained."""
    for name, shape in SHAPES.items():
        for trained in (False, True):
            layer = "trained" if trained else "frozen"
            settings: dict[str, Any] = dict(
                zip(("positions", "width", "vocabulary", "ignored"), shape, strict=True)
            )
            yield Probe(
                name=f"memory, {name}, {layer}",
                why="what the operation is for",
                run=memory(shape, trained=trained),
                settings=settings,
            )
            positions, width, classes, ignored = shape
            direction = f"{layer} output layer"
            if not ignored:
                counts = ("linear_sample_loss", direction, "bfloat16", positions, width, classes)
                settings = {**settings, "calibrates": calibrates(*counts)}
            yield Case(
                name=f"{name}, {layer}",
                why="forward and backward in bf16; a graph of the logits may not fit",
                make=sides(shape, trained=trained),
                settings=settings,
                targets=(
                    Target(goal="not slower than the logits", of="logits", to="triton", bound=1),
                    Target(goal="not slower than chunks", of="reference", to="triton", bound=1),
                ),
                graph=False,
            )
