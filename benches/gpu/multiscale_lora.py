"""Multi-scale LoRA on one layer, against every way there is to write it; goals G1 to G12."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from benches.gpu.cases import Case, Check, Probe, Target, Work
from benches.gpu.lora_layers import SHAPES, Layer, Setting
from benches.gpu.lora_probes import probes
from benches.gpu.lora_routes import forced
from benches.gpu.races import equal_bits
from torch import Tensor

Targets = tuple[Target, ...]


def verify() -> Iterator[Check]:
    """y, dx, dA and dB against float64, held to twice the error of stacked torch."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for inputs, outputs, rows, scales, rank in ((768, 1024, 513, 5, 16), (333, 257, 130, 3, 1)):
            for dropout in (0.0, 0.1):
                setting = Setting(
                    inputs=inputs,
                    outputs=outputs,
                    rows=rows,
                    scales=scales,
                    rank=rank,
                    dropout=dropout,
                    dtype=dtype,
                    adapters=torch.float32,
                )
                yield from compare(Layer(setting), "triton")
    for dropout in (0.0, 0.1):
        for way in ("fused", "accumulate"):
            layer = Layer(Setting(inputs=4096, outputs=4096, dropout=dropout))
            with forced(way):
                work = layer.both(lambda layer=layer: layer.our_output("triton"), "ours")
                yield from equal_bits(f"gradients {layer.setting.name} {way}", work)  # type: ignore[arg-type]
    yield from projections_agree()
    yield from equal_bits(
        "gradients of three projections", three(Setting(inputs=4096, outputs=4096), "triton")
    )


def projections_agree() -> Iterator[Check]:
    """Three projections of one input as one operation, against three layers, both ways of the operation."""
    setting = Setting(inputs=768, outputs=1024, rows=513)
    wanted = three(setting, "layers")()
    for backend in ("triton", "reference"):
        for i, (got, one) in enumerate(zip(three(setting, backend)(), wanted, strict=True)):
            error = ((got - one).norm() / one.norm()).item()
            yield Check(name=f"three projections by {backend}, gradient {i}", error=error, allowed=2e-2)


def compare(layer: Layer, backend: str) -> Iterator[Check]:
    """Compare our path with float64, and the reference with it for what may be allowed."""
    ours, reference = (
        results(layer, lambda b=b: layer.our_output(b), layer.leaves("ours")) for b in (backend, "reference")
    )
    truth = exact(layer)
    kind = f"{layer.setting.name} {layer.setting.dtype}".replace("torch.", "")
    floor = 2 * torch.finfo(layer.setting.dtype).eps
    for name, got, peer, wanted in zip(("y", "dx", "dA", "dB"), ours, reference, truth, strict=True):
        size = wanted.norm()
        error, own = (((t.double() - wanted).norm() / size).item() for t in (got, peer))
        yield Check(name=f"{name} {kind}", error=error, allowed=2 * own + floor)


def results(layer: Layer, output: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Return the output and its gradients."""
    out = output()
    return [out.detach(), *torch.autograd.grad(out, leaves, layer.grad)]


def exact(layer: Layer) -> list[Tensor]:
    """The contract in float64, with the mask of the layer's seed."""
    from asepsis.kernels import _dropout

    s = layer.setting
    x, a, b = (t.detach().double().requires_grad_() for t in layer.leaves("ours"))
    kept: Any = 1.0
    if s.dropout:
        kept = _dropout.keep(layer.seed, s.rows, s.inputs, s.dropout) * _dropout.inverse(s.dropout)
    out = x @ layer.weight.double().t() + (((x * kept) @ a.t()) * layer.scale.double()) @ b.t()
    return [out.detach(), *torch.autograd.grad(out, [x, a, b], layer.grad.double())]


def cases() -> Iterator[Case | Probe]:
    """Whole layers first, then what explains them."""
    for shape, bound in zip(SHAPES, (4.0, 4.0, 3.0, 2.3, 2.1, 2.0, 1.5), strict=True):
        narrow = 1.10 if shape[0] <= 1600 else 0.98
        targets = (over("G1", "PEFT's loop", bound), over("G5b" if narrow > 1 else "G5", "stacked", narrow))
        yield whole(Setting(inputs=shape[0], outputs=shape[1]), targets, "the main comparison, by layer size")
    for shape, forward, backward in zip(
        SHAPES[2:], (1.30, 1.20, 1.15, 1.15, 1.08), (1.50, 1.38, 1.30, 1.25, 1.12), strict=True
    ):
        yield over_frozen(Setting(inputs=shape[0], outputs=shape[1]), forward, backward)
    yield from probes()
    yield shared_input()
    for shape, eight, four in zip(
        (SHAPES[3], SHAPES[5], SHAPES[6]), (3.2, 2.8, 1.9), (2.0, 1.8, 1.4), strict=True
    ):
        inputs, outputs = shape
        yield whole(
            Setting(inputs=inputs, outputs=outputs, scales=8),
            (over("G2", "PEFT's loop", eight),),
            "more adapters",
        )
        yield whole(
            Setting(inputs=inputs, outputs=outputs, scales=4, rank=8),
            (over("G2b", "PEFT's loop", four),),
            "fewer and narrower adapters",
        )
    square = {"inputs": 4096, "outputs": 4096}
    yield whole(
        Setting(**square, adapters=torch.float32),
        (over("G3", "PEFT's loop", 3.5),),
        "PEFT as shipped: its adapters are raised to float32",
    )
    yield whole(
        Setting(**square, dropout=0.1),
        (over("G7", "PEFT's loop", 2.6),),
        "dropout: PEFT draws and keeps a mask for each adapter",
    )
    yield dropout_cost(Setting(**square, dropout=0.1))
    for rows in (1, 16, 64, 256, 1024, 4096, 16384):
        for shape in (SHAPES[0], SHAPES[3], SHAPES[5]):
            yield whole(
                Setting(inputs=shape[0], outputs=shape[1], rows=rows),
                (over("G5", "stacked", 0.98),),
                "never slower than ten lines of torch, at any number of rows",
            )
    # last: each compiles for tens of seconds
    for shape, bound in zip((SHAPES[3], SHAPES[5], SHAPES[6]), (1.6, 1.45, 1.25), strict=True):
        yield compiled(Setting(inputs=shape[0], outputs=shape[1]), bound)


def over(goal: str, peer: str, bound: float) -> Target:
    """A peer's time over ours, at least ``bound``."""
    return Target(goal=goal, of=peer, to="ours", bound=bound)


def whole(setting: Setting, targets: Targets, why: str) -> Case:
    """Forward and backward of one layer: ours, PEFT's loop, stacked torch, the frozen layer."""
    return Case(
        name=f"layer {setting.name}",
        why=why,
        make=lambda: sides(setting),
        settings=setting.about(),
        targets=targets,
    )


def sides(setting: Setting) -> dict[str, Work]:
    """The ways of one layer, forward and backward."""
    layer = Layer(setting)
    found = {
        "ours": layer.both(layer.our_output, "ours"),
        "PEFT's loop": layer.both(layer.loop_output, "loop"),
        "frozen layer": lambda: torch.autograd.grad(layer.base_output(), [layer.x], layer.grad),
    }
    # a stacked version without the masks would be another computation
    if not setting.dropout:
        found["stacked"] = layer.both(layer.stacked_output, "stacked")
    return found


def over_frozen(setting: Setting, forward: float, backward: float) -> Case:
    """Each direction over that of the frozen layer alone."""

    def make() -> dict[str, Work]:
        layer = Layer(setting)
        base = layer.base_output()
        return {
            "forward": layer.our_output,
            "frozen forward": layer.base_output,
            "backward": layer.back(layer.our_output, "ours"),
            "frozen backward": lambda: torch.autograd.grad(base, [layer.x], layer.grad, retain_graph=True),
        }

    targets = (
        Target(goal="G6", of="forward", to="frozen forward", bound=forward, wanted="at most"),
        Target(goal="G6b", of="backward", to="frozen backward", bound=backward, wanted="at most"),
    )
    return Case(
        name=f"directions {setting.name}",
        why="what the branches cost beside the layer they stand on",
        make=make,
        settings=setting.about(),
        targets=targets,
    )


def dropout_cost(setting: Setting) -> Case:
    """The same layer with and without a mask."""

    def make() -> dict[str, Work]:
        without = Setting(**{**vars(setting), "dropout": 0.0})
        layers = {"with": Layer(setting), "without": Layer(without)}
        return {name: layer.both(layer.our_output, "ours") for name, layer in layers.items()}

    target = Target(goal="G7", of="with", to="without", bound=1.08, wanted="at most")
    return Case(
        name=f"mask {setting.name}",
        why="what a mask drawn in the kernels costs",
        make=make,
        settings=setting.about(),
        targets=(target,),
    )


def three(setting: Setting, way: str) -> Callable[[], tuple[Tensor, ...]]:
    """Gradients of three projections of one input: one operation on a backend, a layer each, or stacked torch."""
    from asepsis.kernels import GroupedLayer, grouped_lora

    layers = [Layer(setting, seed) for seed in range(3)]
    for layer in layers[1:]:
        layer.x = layers[0].x
    x = layers[0].x
    leaves = [x, *(leaf for layer in layers for leaf in layer.leaves("ours")[1:])]
    group = [
        GroupedLayer(weight=one.weight, lora_a=one.lora_a, lora_b=one.lora_b, scale=one.scale)
        for one in layers
    ]

    def run() -> tuple[Tensor, ...]:
        if way in ("layers", "stacked"):
            outs = tuple(one.our_output() if way == "layers" else one.stacked_output() for one in layers)
        else:
            outs = grouped_lora(x, group, backend=way)  # type: ignore[arg-type]
        return torch.autograd.grad(outs, leaves, [one.grad for one in layers])

    return run


def shared_input() -> Case:
    """Three projections of one input: in one operation, as three layers, and as three stacked ones of torch."""
    setting = Setting(inputs=4096, outputs=4096)
    ways = {"ours": "auto", "ours, torch": "reference", "a layer each": "layers", "stacked": "stacked"}
    return Case(
        name="three projections 4096x4096",
        why="q, k and v read one input: what is saved by reading it once and by accumulating its gradient",
        make=lambda: {name: three(setting, way) for name, way in ways.items()},
        settings=setting.about(),
        targets=(over("G5c", "stacked", 1.08),),
    )


def compiled(setting: Setting, bound: float) -> Case:
    """PEFT's loop under torch.compile, and the frozen layer under it."""

    def make() -> dict[str, Work]:
        layer = Layer(setting)
        loop = torch.compile(layer.loop_output)
        return {
            "ours": layer.both(layer.our_output, "ours"),
            "compiled loop": layer.both(loop, "loop"),
            "PEFT's loop": layer.both(layer.loop_output, "loop"),
        }

    return Case(
        name=f"compiled {setting.name}",
        why="Inductor fuses the pointwise operations of the loop: the best PEFT gets without another layer",
        make=make,
        settings=setting.about(),
        targets=(over("G4", "compiled loop", bound),),
        graph=False,
    )
