"""What the benches say to the dispatcher: rows whose settings name what they calibrate, in the file it reads.

A case calibrates when its settings hold ``calibrates``: operation, direction, dtype and sizes as
:mod:`asepsis.kernels._calibration` knows them. Sides named as the operation's ways are taken, others are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.gpu import machine


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


def content(results: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Make a calibration out of benches' results."""
    from asepsis.kernels import _calibration

    measured, ratios = [], []
    for row in (row for result in results for row in result["rows"]):
        sides = {name: side["median_us"] for name, side in row.get("sides", {}).get("eager", {}).items()}
        said = row["settings"].get("calibrates")
        if said:
            ways = _calibration.OPERATIONS[said["operation"]].ways | {"reference"}
            us = {name: value for name, value in sides.items() if name in ways}
            measured += [{**said, "us": us}] if us else []
        elif row["name"].startswith("product") and {"library", "Triton"} <= set(sides):
            ratios.append(sides["library"] / sides["Triton"])
    # the least of them: where no layer was timed the library is the safer guess
    ratio = {"bfloat16": min(ratios)} if ratios else {}
    return {
        "schema": _calibration.SCHEMA,
        "note": f"measured at commit {about['commit']}, torch {about['torch']}",
        "devices": [{"device": about["device"], "gemm_ratio": ratio, "measured": measured}],
    }


def write(results: Sequence[Mapping[str, Any]], about: dict[str, Any], folder: Path) -> Path | None:
    """Write the calibration and let it decide from here on; None where nothing that counts was timed."""
    made = content(results, about)
    if not made["devices"][0]["measured"]:
        return None
    from asepsis.kernels import use_calibration

    path = machine.result_path(folder, about, "calibration")
    machine.write(path, made)
    use_calibration(path)
    return path
