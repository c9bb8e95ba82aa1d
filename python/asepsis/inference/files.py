"""A guard as a folder: ``guard.json`` and the detector's own files. JSON and safetensors, nothing that is run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

from asepsis.core.conformal import Threshold
from asepsis.core.documents import read_json
from asepsis.core.folders import whole_folder
from asepsis.core.manifest import check_writable
from asepsis.core.weights.admission import MOST_LABELS
from asepsis.data.dataset import Task
from asepsis.data.values import shown
from asepsis.errors import CheckpointError
from asepsis.inference.detectors.base import Detector

MANIFEST = "guard.json"
FILES = "detector"
_MOST = 1 << 20
_MOST_ROWS = 1 << 48
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
    manifest = content["manifest"]
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} is broken: its manifest is {type(manifest).__name__}, not an object")
    if manifest.get("format") != 1:
        raise CheckpointError(f"{path} has format {manifest.get('format')!r}, this version reads 1")
    wanted = {"detector": str, "weights": str, "model": str, "task": str}
    if odd := [name for name, kind in wanted.items() if not isinstance(manifest.get(name), kind)]:
        raise CheckpointError(f"{path} is broken: {odd[0]} of its manifest is {manifest.get(odd[0])!r}")
    if manifest["task"] not in get_args(Task):
        raise CheckpointError(f"{path} is broken: it is for the task {manifest['task']!r}")
    classes, least = manifest.get("n_classes"), 2 if manifest["task"] == "classification" else 0
    if not (classes is None and not least) and not whole(classes, least, MOST_LABELS):
        raise CheckpointError(f"{path} is broken: n_classes of its manifest is {shown(classes)}")
    _check_state(path, content["state"])
    if content["control"] is not None:
        if not isinstance(content["control"], dict):
            raise CheckpointError(f"{path} is broken: its control is {shown(content['control'])}")
        _check_state(path, content["control"].get("state"))
    return content


def whole(value: Any, least: int, most: int) -> bool:
    """Whether a value of a file is a whole number within bounds."""
    return type(value) is int and least <= value <= most


def _check_state(path: Path, state: Any) -> None:
    """Refuse numbers beyond any that a detector was ever fitted with: rows are copied, cut and batched by them."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is broken: its state is {shown(state)}")
    bounds = {
        "max_length": (1, _MOST),
        "batch_size": (1, _MOST),
        "n_classes": (0, MOST_LABELS),
        "seed": (0, 1 << 63),
    }
    odd = {
        name: state[name] for name, most in bounds.items() if name in state and not whole(state[name], *most)
    }
    config = state.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is broken: its config is {shown(config)}")
    odd |= {
        name: value for name, value in config.items() if isinstance(value, int) and not abs(value) <= _MOST
    }
    for name, value in odd.items():
        raise CheckpointError(f"{path} is broken: {name} of a detector is {shown(value)}")


def stored_threshold(values: dict[str, Any]) -> Threshold:
    """Return a threshold as it was saved.

    Raises
    ------
    CheckpointError
        A number of it is NaN or infinite: nothing would ever be flagged, or everything.
    """
    found = Threshold(**values)
    shares = (found.target_fpr, found.expected_fpr, found.low, found.high, found.chance)
    if any(isinstance(share, (int, float)) and not 0 <= share <= 1 for share in shares):
        raise CheckpointError(
            f"the threshold's shares are {shown(shares)}, wanted 0 to 1; fit the guard again"
        )
    if not whole(found.n, 1, _MOST_ROWS):
        raise CheckpointError(f"the threshold's n is {shown(found.n)}; fit the guard again")
    for name, value in found.to_dict().items():
        if isinstance(value, bool) or not (
            value is None or (isinstance(value, (int, float)) and math.isfinite(value))
        ):
            raise CheckpointError(f"the threshold's {name} is {value!r}; fit the guard again")
    return found


def check_model(folder: Path, manifest: dict[str, Any], weights: str) -> None:
    """Raise ``CheckpointError`` where the weights are not those the guard was fitted on."""
    if manifest["weights"] != weights:
        raise CheckpointError(
            f"the guard in {folder} was fitted on other weights than these, of {manifest['model'] or 'a model in memory'}; its "
            "threshold says nothing here: fit a guard for this model"
        )
