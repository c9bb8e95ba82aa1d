"""Which machine and which commit numbers come from, and the file they go to."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from benches.gpu.tree import ROOT


def describe() -> dict[str, Any]:
    """Return what a reader needs to repeat the run: device, driver's CUDA, versions, commit."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def commit(root: Path = ROOT) -> str:
    """Return the short commit, with ``+`` behind it where files differ from it; ``unknown`` outside a repository."""
    try:
        git = ["git", "-C", str(root)]
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def slug(device: str) -> str:
    """Return a device's name as a folder: ``NVIDIA H200`` is ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def result_path(folder: Path, machine: dict[str, Any], bench: str) -> Path:
    """Return ``folder/<device>/<date>-<commit>-<bench>.json``, as the results in this tree are named."""
    return folder / slug(machine["device"]) / f"{machine['date']}-{machine['commit']}-{bench}.json"


def write(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON; a NaN is an error here and not a file nobody can read."""
    text = json.dumps(content, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
