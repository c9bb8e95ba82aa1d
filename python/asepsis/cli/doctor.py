"""``asepsis doctor``: what this machine can run. Made to be pasted into an issue."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from asepsis import _about
from asepsis.cli._exit import ExitCode

Report = dict[str, Any]


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
    packages = {name: _version(name) for name in (*_about.REQUIRED, *_about.OPTIONAL)}
    native = _native()
    broken = [
        f"{name} is not installed: pip install {name}" for name in _about.REQUIRED if packages[name] is None
    ]
    if native["problem"]:
        broken.append(native["problem"])
    has_torch = packages["torch"] is not None
    return {
        "asepsis": _about.__version__,
        "native": native,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "packages": packages,
        "cpu": _cpu(has_torch=has_torch),
        "gpu": _gpu(has_torch=has_torch),
        "kernels": _kernels(has_torch=has_torch),
        "demo": {
            package.provides: {
                "package": package.distribution,
                "installed": find_spec(package.module) is not None,
            }
            for package in _about.DEMO_PACKAGES
        },
        "demo_install": _about.DEMO_INSTALL,
        "broken": broken,
    }


def render(report: Report) -> str:
    """Return the report as aligned plain lines."""
    rows = [
        ("asepsis", f"{report['asepsis']}, native core {report['native']['version'] or 'missing'}"),
        ("python", f"{report['python']['version']}  {report['python']['executable']}"),
        ("platform", report["platform"]),
        *((name, version or "not installed") for name, version in report["packages"].items()),
        ("cpu", _cpu_line(report["cpu"])),
        *((f"gpu {i}", _gpu_line(device)) for i, device in enumerate(report["gpu"]["devices"])),
    ]
    if not report["gpu"]["devices"]:
        rows.append(("gpu", f"none: {report['gpu']['reason']}"))
    for operation, backends in report["kernels"].items():
        runs = [name for name, reason in backends.items() if reason is None]
        rows.append((operation, ", ".join(runs) or "no backend runs"))
        rows.extend(("", f"not {name}: {reason}") for name, reason in backends.items() if reason is not None)
    rows.extend(
        (name, found["package"] if found["installed"] else f"{found['package']} is not installed")
        for name, found in report["demo"].items()
    )
    if not all(found["installed"] for found in report["demo"].values()):
        rows.append(("", f"the demo wants: {report['demo_install']}"))
    rows.extend(("BROKEN", reason) for reason in report["broken"])
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _version(distribution: str) -> str | None:
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return None


def _native() -> Report:
    try:
        from asepsis import _native
    except ImportError as error:
        return {
            "version": None,
            "problem": f"the Rust core does not load ({error}): pip install --force-reinstall asepsis",
        }
    found = _native.__version__
    # an editable install keeps the library of the last build beside newer Python files
    stale = f"the Rust core is {found}, the Python files are {_about.__version__}: build again (make dev)"
    return {"version": found, "problem": None if found == _about.__version__ else stale}


def _cpu(*, has_torch: bool) -> Report:
    affinity = getattr(os, "sched_getaffinity", None)
    report: Report = {
        "machine": platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "capability": None,
        "amx": None,
        "threads": None,
    }
    if has_torch:
        import torch

        # private in torch, so its absence in another version is no news
        amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        report["capability"] = torch.backends.cpu.get_cpu_capability()
        report["amx"] = bool(amx()) if amx else None
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
        reason = (
            "this torch was built without CUDA"
            if without_cuda
            else "no NVIDIA driver or no device is visible"
        )
        return {"devices": [], "reason": reason}
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    devices = [
        {"name": p.name, "capability": f"{p.major}.{p.minor}", "memory_gib": round(p.total_memory / 2**30, 1)}
        for p in found
    ]
    return {"devices": devices, "reason": None}


def _kernels(*, has_torch: bool) -> dict[str, dict[str, str | None]]:
    """Return operation to backend to the reason why it does not run here, None where it does."""
    if not has_torch:
        return {}
    from asepsis import kernels

    answer: dict[str, dict[str, str | None]] = kernels.available_backends()
    return answer


def _cpu_line(cpu: Report) -> str:
    parts = [cpu["machine"], f"{cpu['cores']} cores"]
    if cpu["memory_gib"] is not None:
        parts.append(f"{cpu['memory_gib']} GiB")
    if cpu["capability"] is not None:
        parts.append(cpu["capability"])
    if cpu["amx"] is not None:
        parts.append("AMX" if cpu["amx"] else "no AMX")
    return ", ".join(parts)


def _gpu_line(device: Report) -> str:
    return f"{device['name']}, capability {device['capability']}, {device['memory_gib']} GiB"
