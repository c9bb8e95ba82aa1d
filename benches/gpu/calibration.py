"""What the benches say to the dispatcher: rows whose settings name what they calibrate, in the file it reads.

A case calibrates when its settings hold ``calibrates``: operation, direction, dtype and sizes as
:mod:`asepsis.kernels._calibration` knows them. Sides named as the operation's ways are taken, others are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benches.gpu import machine

_LORA = frozenset({"multiscale_lora", "grouped_lora"})
#: What each bench checks: after a wrong result there, no bench's times of it count.
CHECKED: Mapping[str, frozenset[str]] = {
    "lora_routes": _LORA,
    "multiscale_lora": _LORA,
    "alignment": frozenset({"gradient_alignment"}),
    "sample_loss": frozenset({"linear_sample_loss"}),
}


def calibrates(operation: str, direction: str, dtype: object, *sizes: int) -> dict[str, Any]:
    """Return the setting that makes a case count; sizes in the operation's order."""
    from asepsis.kernels import _calibration

    names = _calibration.OPERATIONS[operation].sizes
    return {
        "operation": operation,
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "sizes": dict(zip(names, sizes, strict=True)),
    }


def content(results: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Make a calibration out of results by bench."""
    from asepsis.kernels import _calibration

    failed = [name for name, result in results.items() if not all(c["passed"] for c in result["checks"])]
    wrong = frozenset[str]().union(*(CHECKED.get(name, frozenset()) for name in failed))
    measured, ratios = [], []
    for row in (row for result in results.values() for row in result["rows"]):
        sides = {name: side["median_us"] for name, side in row.get("sides", {}).get("eager", {}).items()}
        said = row["settings"].get("calibrates")
        if said and said["operation"] not in wrong:
            ways = _calibration.OPERATIONS[said["operation"]].ways | {"reference"}
            us = {name: value for name, value in sides.items() if name in ways}
            measured += [{**said, "us": us}] if us else []
        elif not said and row["name"].startswith("product") and {"library", "Triton"} <= set(sides):
            ratios.append(sides["library"] / sides["Triton"])
    # the least of them: where no layer was timed the library is the safer guess
    ratio = {"bfloat16": min(ratios)} if ratios else {}
    return {
        "schema": _calibration.SCHEMA,
        "note": f"measured at commit {about['commit']}, torch {about['torch']}",
        "devices": [{"device": about["device"], "gemm_ratio": ratio, "measured": measured}],
    }


def write(results: Mapping[str, Mapping[str, Any]], about: dict[str, Any], folder: Path) -> Path | None:
    """Write the calibration and let it decide from here on; None where nothing that counts was timed."""
    from asepsis.kernels import use_calibration

    made, path = content(results, about), machine.result_path(folder, about, "calibration")
    # what was found wrong after it was written has to go again
    if not made["devices"][0]["measured"] and not path.exists():
        return None
    machine.write(path, made)
    use_calibration(path)
    return path
