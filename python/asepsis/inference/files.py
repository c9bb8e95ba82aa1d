"""A guard as a folder: ``guard.json`` and the detector's own files. JSON and safetensors, nothing that is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asepsis.core.conformal import Threshold
from asepsis.core.documents import read_json
from asepsis.core.folders import whole_folder
from asepsis.core.manifest import check_writable
from asepsis.errors import CheckpointError
from asepsis.inference.detectors.base import Detector

MANIFEST = "guard.json"
FILES = "detector"
_PARTS = ("manifest", "state", "threshold", "control", "calibration")


def check_target(folder: Path) -> None:
    """Raise ``CheckpointError`` where a folder holds something else than a guard: it would be replaced."""
    check_writable(folder, manifest=MANIFEST, otherwise="is no guard")


def save_guard(
    folder: Path,
    detector: Detector,
    threshold: Threshold,
    manifest: dict[str, Any],
    *,
    control: tuple[Detector, Threshold] | None,
    calibration: dict[str, Any],
) -> Path:
    """Write everything :func:`load_guard` reads; the folder appears whole or not at all."""
    check_target(folder)
    content = {
        "manifest": manifest,
        "state": detector.state(),
        "threshold": threshold.to_dict(),
        "control": None
        if control is None
        else {"state": control[0].state(), "threshold": control[1].to_dict()},
        "calibration": calibration,
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    with whole_folder(folder) as scratch:
        (scratch / FILES).mkdir()
        detector.save(scratch / FILES)
        (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return folder


def load_guard(folder: Path) -> dict[str, Any]:
    """Return the parts of a saved guard.

    Raises
    ------
    CheckpointError
        The folder holds no guard, or not a whole one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no guard: it has no {MANIFEST}; asepsis guard fit writes one")
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is broken: {error}") from error
    if not isinstance(content, dict) or any(part not in content for part in _PARTS):
        raise CheckpointError(f"{path} is broken: it must hold {', '.join(_PARTS)}")
    if content["manifest"].get("format") != 1:
        raise CheckpointError(
            f"{path} has format {content['manifest'].get('format')!r}, this version reads 1"
        )
    return content


def check_model(folder: Path, manifest: dict[str, Any], weights: str) -> None:
    """Raise ``CheckpointError`` where the weights are not those the guard was fitted on."""
    if manifest["weights"] != weights:
        raise CheckpointError(
            f"the guard in {folder} was fitted on other weights than these, of {manifest['model'] or 'a model in memory'}; its "
            "threshold says nothing here: fit a guard for this model"
        )
