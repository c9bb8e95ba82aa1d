"""``asepsis doctor``: what this machine can run. Made to be pasted into an issue."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated, Any, get_args

import typer

from asepsis.cli._exit import ExitCode

Report = dict[str, Any]

#: Distributions without which asepsis does not work, in the order reports show them.
REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")

#: Distributions that add something when present.
OPTIONAL = ("triton", "trl", "matplotlib", "gguf", "wordfreq")


def doctor(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False
) -> ExitCode:
    """Say what is installed, which GPU is seen, which kernels run and why not."""
    report = examine()
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(render(report))
    return ExitCode.ERROR if report["broken"] else ExitCode.OK


def examine() -> Report:
    """Return what ``asepsis doctor --json`` prints; ``broken`` lists what keeps asepsis from working at all."""
    from asepsis import __version__

    packages = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    broken = [f"{name} is not installed: pip install {name}" for name in REQUIRED if packages[name] is None]
    installed = _version("asepsis")
    if installed != __version__:
        # an editable install keeps the library of the last build beside newer files
        broken.append(f"the Rust core is {__version__}, the installed asepsis {installed}: install it again")
    has_torch = packages["torch"] is not None
    return {
        "asepsis": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "packages": packages,
        "cpu": _cpu(has_torch=has_torch),
        "gpu": _gpu(has_torch=has_torch),
        "kernels": _kernels() if has_torch else {},
        "demo": _demo(),
        "broken": broken,
    }


def render(report: Report) -> str:
    """Return the report as aligned plain lines."""
    rows = [
        ("asepsis", report["asepsis"]),
        ("python", f"{report['python']['version']}  {report['python']['executable']}"),
        ("platform", report["platform"]),
        *((name, version or "not installed") for name, version in report["packages"].items()),
        ("cpu", _cpu_line(report["cpu"])),
        *((f"gpu {i}", _gpu_line(device)) for i, device in enumerate(report["gpu"]["devices"])),
    ]
    if not report["gpu"]["devices"]:
        rows.append(("gpu", f"none: {report['gpu']['reason']}"))
    for operation, devices in report["kernels"].items():
        for device, backends in devices.items():
            runs = [name for name, refusal in backends.items() if refusal is None]
            rows.append((operation, f"{', '.join(runs) or 'nothing'} on {device}"))
            # the rest of a refusal is advice for code, not for a report
            why_not = [(name, refusal.partition(";")[0]) for name, refusal in backends.items() if refusal]
            rows.extend(("", f"not {name}: {reason}") for name, reason in why_not)
    rows.extend((name, problem or "present, checked") for name, problem in report["demo"].items())
    rows.extend(("BROKEN", reason) for reason in report["broken"])
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _version(distribution: str) -> str | None:
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return None


def _cpu(*, has_torch: bool) -> Report:
    affinity = getattr(os, "sched_getaffinity", None)
    report: Report = {
        "machine": platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "capability": None,
        "amx": None,
        "avx512_bf16": None,
        "threads": None,
    }
    if has_torch:
        import torch

        # private in torch, so its absence in another version is no news
        amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        report["capability"] = torch.backends.cpu.get_cpu_capability()
        report["amx"] = bool(amx()) if amx else None
        report["avx512_bf16"] = bool(bf16()) if bf16 else None
        report["threads"] = torch.get_num_threads()
    return report


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu(*, has_torch: bool) -> Report:
    if not has_torch:
        return {"devices": [], "reason": "torch is not installed"}
    import torch

    if not torch.cuda.is_available():
        without_cuda = torch.version.cuda is None and torch.version.hip is None
        reason = "torch was built without CUDA" if without_cuda else "no NVIDIA driver or no visible device"
        return {"devices": [], "reason": reason}
    from asepsis.kernels import _calibration

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    devices = [
        {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "memory_gib": round(p.total_memory / 2**30, 1),
            "calibrated": p.name in _calibration.table().devices,
        }
        for p in found
    ]
    return {"devices": devices, "reason": None}


def _kernels() -> Report:
    """Return operation to device to backend to its refusal, None where it ran: each is run on two numbers."""
    import numpy as np
    import torch

    from asepsis import kernels
    from asepsis.errors import BackendError

    def attempt(probe: Callable[[Any], object], backend: str) -> str | None:
        try:
            probe(backend)
        except BackendError as refusal:
            return str(refusal)
        return None

    def probes(device: torch.device) -> dict[str, Callable[[Any], object]]:
        x, y = torch.zeros(2, 2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
        segments, held = kernels.Segments.of([2], device), np.zeros(8, np.uint8)
        return {
            "bottom_k": lambda backend: kernels.bottom_k(x[0], 1, backend=backend),
            "column_medians": lambda backend: kernels.column_medians(x, x, backend=backend),
            "gradient_alignment": lambda backend: kernels.gradient_alignment(
                x[0].clone(), x[1], segments, backend=backend
            ),
            "grouped_lora": lambda backend: kernels.grouped_lora(
                x, [kernels.GroupedLayer(weight=x, lora_a=x, lora_b=x, scale=x[0])], backend=backend
            ),
            "linear_sample_loss": lambda backend: kernels.linear_sample_loss(x, x, y, backend=backend),
            "mix": lambda backend: kernels.mix(
                held[:4], held[:4], held[4:], item_size=4, seed=0, key=0, reserve_ratio=0.5, backend=backend
            ),
            "multiscale_lora": lambda backend: kernels.multiscale_lora(
                x, x, None, x, x, x[0], backend=backend
            ),
            "row_stats": lambda backend: kernels.row_stats(x, x, backend=backend),
            "sample_loss": lambda backend: kernels.sample_loss(x, y, backend=backend),
        }

    devices = [torch.device(d) for d in ("cpu", "cuda") if d == "cpu" or torch.cuda.is_available()]
    report: Report = {}
    for device in devices:
        for name, probe in probes(device).items():
            tried = {b: attempt(probe, b) for b in get_args(kernels.Backend) if b != "auto"}
            report.setdefault(name, {})[device.type] = tried
    return report


def _demo() -> dict[str, str | None]:
    """Return each packaged model or text with what is wrong with it, None for nothing."""
    from asepsis.data import packaged
    from asepsis.errors import AsepsisError

    finders: dict[str, Callable[[], object]] = {
        "demo:encoder": lambda: packaged.demo_model("demo:encoder"),
        "demo:causal": lambda: packaged.demo_model("demo:causal"),
        "demo text": packaged.demo_text,
    }
    found: dict[str, str | None] = {}
    for name, find in finders.items():
        try:
            find()
            found[name] = None
        except AsepsisError as problem:
            found[name] = str(problem)
    return found


def _cpu_line(cpu: Report) -> str:
    parts = [cpu["machine"], f"{cpu['cores']} cores"]
    if cpu["memory_gib"] is not None:
        parts.append(f"{cpu['memory_gib']} GiB")
    if cpu["capability"] is not None:
        parts.append(cpu["capability"])
    if cpu["amx"] is not None:
        parts.append("AMX" if cpu["amx"] else "no AMX")
    if cpu["avx512_bf16"] is not None:
        parts.append("AVX-512 BF16" if cpu["avx512_bf16"] else "no AVX-512 BF16")
    return ", ".join(parts)


def _gpu_line(device: Report) -> str:
    calibrated = "calibrated" if device["calibrated"] else "not calibrated: auto takes torch"
    return f"{device['name']}, capability {device['capability']}, {device['memory_gib']} GiB, {calibrated}"
