"""What is no time: memory, launches, waits of the host, errors of a multi-scale LoRA layer. Equal bits are checks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from benches.gpu.cases import Probe
from benches.gpu.lora_layers import Layer, Setting
from benches.gpu.timing import host_seconds

_SETTING = Setting(inputs=4096, outputs=4096)
_MASKED = Setting(inputs=4096, outputs=4096, dropout=0.1)


def probes() -> Iterator[Probe]:
    """G8, G9, G11, G12; G10 is checked before anything is timed."""
    about = _SETTING.about()
    yield Probe(
        name="memory",
        why="G8: beyond results, forward keeps M x R and backward its sums",
        run=_memory,
        settings=about,
    )
    yield Probe(
        name="launches",
        why="G9: launches and host time per call; nothing waits",
        run=_launches,
        settings=about,
    )
    yield Probe(name="errors", why="G11: fewer roundings than the loop", run=_errors, settings=about)
    yield Probe(
        name="quantized base",
        why="G12: share of a 4-bit layer that is unpacking",
        run=_quantized,
        settings=about,
    )


def _memory() -> dict[str, Any]:
    found: dict[str, Any] = {"goal": "forward <= M*R*2 B + 1 MiB, backward scratch <= 32 MiB"}
    for setting in (_SETTING, _MASKED):
        for way in ("ours", "PEFT's loop"):
            layer = Layer(setting)
            output = layer.our_output if way == "ours" else layer.loop_output
            key = f"{way}, dropout {setting.dropout:g}"
            out = output()
            del out
            before = _reset()
            out = output()
            result = out.numel() * out.element_size()
            found[f"{key}: forward peak beyond output, bytes"] = (
                torch.cuda.max_memory_allocated() - before - result
            )
            found[f"{key}: kept for backward, bytes"] = torch.cuda.memory_allocated() - before - result
            before = _reset()
            gradients = torch.autograd.grad(
                out, layer.leaves("ours" if way == "ours" else "loop"), layer.grad
            )
            results = sum(g.numel() * g.element_size() for g in gradients)
            found[f"{key}: backward peak beyond results, bytes"] = (
                torch.cuda.max_memory_allocated() - before - results
            )
            del out, gradients
    return found


def _reset() -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _launches() -> dict[str, Any]:
    layer = Layer(_SETTING)
    forward = layer.our_output
    backward = layer.back(forward, "ours")
    found: dict[str, Any] = {"goal": "launches <= 3 forward, 8 backward; host <= 60 us forward; no waits"}
    for name, work in (("forward", forward), ("backward", backward)):
        work()
        found[f"{name}: launches"] = _kernels(work)
        found[f"{name}: host, us"] = 1e6 * host_seconds(work)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward()
        backward()
        found["waits"] = 0
    except RuntimeError as problem:
        found["waits"] = str(problem).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return found


def _kernels(work: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        work()
        torch.cuda.synchronize()
    on_device = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(on_device)


def _errors() -> dict[str, Any]:
    from benches.gpu.multiscale_lora import exact, results

    layer = Layer(Setting(inputs=2048, outputs=2048, rows=2048))
    truth = exact(layer)
    found: dict[str, Any] = {"goal": "ours <= loop"}
    outputs = {"ours": lambda: layer.our_output("triton"), "stacked": layer.stacked_output}
    for way, output in outputs.items():
        got = results(layer, output, layer.leaves(way))
        for name, t, wanted in zip(("y", "dx", "dA", "dB"), got, truth, strict=True):
            found[f"{way}: {name}"] = ((t.double() - wanted).norm() / wanted.norm()).item()
    y, dx, *factors = results(layer, layer.loop_output, layer.leaves("loop"))
    n = layer.setting.scales
    for name, t, wanted in zip(
        ("y", "dx", "dA", "dB"),
        (y, dx, torch.cat(factors[:n]), torch.cat(factors[n:], 1)),
        truth,
        strict=True,
    ):
        found[f"loop: {name}"] = ((t.double() - wanted).norm() / wanted.norm()).item()
    return found


def _quantized() -> dict[str, Any]:
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"not measured": "bitsandbytes is not installed"}
    import bitsandbytes as bnb

    layer = Layer(_SETTING)
    packed = bnb.nn.Linear4bit(4096, 4096, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    packed.weight = bnb.nn.Params4bit(layer.weight.float().cpu(), requires_grad=False, quant_type="nf4")
    packed = packed.cuda()
    unpack = lambda: bnb.functional.dequantize_4bit(packed.weight, packed.weight.quant_state)  # noqa: E731
    times = {}
    for name, work in (("unpacking", unpack), ("layer", lambda: packed(layer.x))):
        work()
        torch.cuda.synchronize()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(50):
            work()
        stop.record()
        torch.cuda.synchronize()
        times[f"{name}, us"] = 20 * start.elapsed_time(stop)
    return {"goal": "unpacking <= 5 % of the layer", **times}
