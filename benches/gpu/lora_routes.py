"""Calibration of multi-scale LoRA: what each route, the library's products and the host cost on this GPU.

What comes out decides for the benches that follow; see ``benches/gpu/calibration.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from benches.gpu.calibration import calibrates
from benches.gpu.cases import Case, Check, Probe, Work
from benches.gpu.lora_layers import SHAPES, Layer, Setting
from benches.gpu.timing import host_seconds

ROWS = (8192, 1024, 4096, 16384, 256, 64, 16, 1)
RANKS = (80, 16, 32, 64, 128)
WAYS = ("fused", "accumulate", "reference")


def verify() -> Iterator[Check]:
    """Both routes give one result."""
    layer = Layer(Setting(inputs=768, outputs=1024, rows=600))
    wanted = layer.our_output("reference")
    for way in WAYS[:2]:
        with forced(way):
            got = layer.our_output("triton")
        error = ((got - wanted).norm() / wanted.norm()).item()
        yield Check(name=f"y by {way} against torch", error=error, allowed=1e-2)


def cases() -> Iterator[Case | Probe]:
    """Products first, they decide the routes where no layer was timed; then layers, largest rows first."""
    for inputs, outputs in SHAPES:
        yield Case(
            name=f"product {inputs}x{outputs}",
            why="share of the library's speed a Triton product reaches: decides where the fused route wins",
            make=lambda i=inputs, o=outputs: _products(i, o),
            settings={"inputs": inputs, "outputs": outputs, "rows": 8192},
            graph=False,
        )
    for rank in RANKS:
        yield Case(
            name=f"narrow products R={rank}",
            why="share of memory speed the narrow products reach, the library's and ours, and the in-place addition",
            make=lambda r=rank: _narrow(r),
            settings={"inputs": 4096, "outputs": 4096, "rows": 8192, "rank": rank},
            graph=False,
        )
    yield Probe(name="host", why="what a call costs the host, by kind of call", run=_host)
    for scales, rows in [(5, n) for n in ROWS] + [(1, n) for n in ROWS[:5]]:
        for inputs, outputs in SHAPES:
            setting = Setting(inputs=inputs, outputs=outputs, rows=rows, scales=scales)
            for direction in ("forward", "backward"):
                yield Case(
                    name=f"{direction} {setting.name}",
                    why="the three ways on one layer: an entry of the table",
                    make=lambda s=setting, d=direction: _ways(s, d),
                    settings={"calibrates": _counts(setting, direction)},
                    graph=False,
                    rounds=15,
                )
    for scales, rows in ((5, 8192), (1, 8192), (5, 1024), (1, 1024), (5, 64), (1, 64)):
        for width in (768, 2048, 4096):
            setting = Setting(inputs=width, outputs=width, rows=rows, scales=scales)
            sizes = rows, width, 3 * width, 3 * scales * setting.rank
            yield Case(
                name=f"three projections {setting.name}",
                why="layers of one input in one operation: an entry of the table",
                make=lambda s=setting: _projections(s),
                settings={"calibrates": calibrates("grouped_lora", "both", setting.dtype, *sizes)},
                graph=False,
                rounds=15,
            )
    yield Case(
        name="cache 768x768",
        why="one hot buffer against fresh ones: how much the L2 flatters small layers when it is not flushed",
        make=_hot,
        settings={"inputs": 768, "outputs": 768, "rows": 8192},
        graph=False,
    )


def _counts(s: Setting, direction: str) -> dict[str, Any]:
    return calibrates("multiscale_lora", direction, s.dtype, s.rows, s.inputs, s.outputs, s.scales * s.rank)


class forced:
    """Within, every layer goes one way."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __enter__(self) -> None:
        from asepsis.kernels._triton import _routes

        self._plan = _routes.plan
        made = _routes.Plan(self.way, self.way, "measured")  # type: ignore[arg-type]
        _routes.plan = lambda _: made  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        from asepsis.kernels._triton import _routes

        _routes.plan = self._plan  # type: ignore[assignment]


def _ways(setting: Setting, direction: str) -> dict[str, Work]:
    layer = Layer(setting)

    def way(name: str) -> Work:
        backend = "reference" if name == "reference" else "triton"

        def output() -> torch.Tensor:
            return layer.our_output(backend)

        with forced(name):
            work: Work = output if direction == "forward" else layer.back(output, "ours")

        def run() -> None:
            with forced(name):
                work()

        return run

    return {name: way(name) for name in WAYS}


def _products(inputs: int, outputs: int) -> dict[str, Work]:
    from asepsis.kernels._triton import _lora_products as products

    layer = Layer(Setting(inputs=inputs, outputs=outputs, scales=1))
    x, weight = layer.x.detach(), layer.weight
    a, b = layer.lora_a.detach(), layer.lora_b.detach()
    p = products.shrink(x, a.t(), layer.scale, None, masked=False)
    # the epilogue's rank of 16 is 0.4 % of the work at 4096 features
    return {
        "library": lambda: torch.nn.functional.linear(x, weight),
        "Triton": lambda: products.linear(x, weight, None, p, b, None),
    }


def _narrow(rank: int) -> dict[str, Work]:
    from asepsis.kernels._triton import _lora_products as products

    layer = Layer(Setting(inputs=4096, outputs=4096, scales=1, rank=rank))
    x, g, a, b = layer.x.detach(), layer.grad, layer.lora_a.detach(), layer.lora_b.detach()
    p = products.shrink(x, a.t(), layer.scale, None, masked=False)
    narrow, out = p[:, :rank], torch.empty_like(g)
    mask = products.Mask.of(layer.seed, 0.1)
    return {
        "copy of x": lambda: x.clone(),
        "x A^T, library": lambda: x @ a.t(),
        "x A^T, ours": lambda: products.shrink(x, a.t(), layer.scale, None, masked=False),
        "x A^T with a mask, ours": lambda: products.shrink(x, a.t(), layer.scale, mask, masked=True),
        "p^T x, library": lambda: narrow.t() @ x,
        "p^T x, ours": lambda: products.gradient(x, p, None, like=a, rank_first=True, boundary=None),
        "addition in place": lambda: out.addmm_(narrow, b.t()),
    }


def _projections(setting: Setting) -> dict[str, Work]:
    from benches.gpu.multiscale_lora import three

    return {backend: three(setting, backend) for backend in ("triton", "reference")}


def _hot() -> dict[str, Work]:
    layer = Layer(Setting(inputs=768, outputs=768))
    fresh = [Layer(Setting(inputs=768, outputs=768), seed) for seed in range(1, 9)]
    turn = iter(range(1 << 30))

    def rotated() -> None:
        fresh[next(turn) % len(fresh)].our_output("triton")

    return {"one buffer": lambda: layer.our_output("triton"), "eight buffers in turn": rotated}


def _host() -> dict[str, float]:
    layer = Layer(Setting(inputs=64, outputs=64, rows=64))
    calls: dict[str, Callable[[], object]] = {
        "torch product": layer.base_output,
        "autograd.Function of torch products": layer.stacked_output,
        "our reference": lambda: layer.our_output("reference"),
        "our custom operator": lambda: layer.our_output("triton"),
    }
    for call in calls.values():
        call()
    return {f"{name}, us": 1e6 * host_seconds(call) for name, call in calls.items()}
