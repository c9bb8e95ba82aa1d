"""What lies in an output folder, read and compared with its manifest; nothing in it is trusted to be well-formed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.core.documents import read_json
from asepsis.core.evidence import EVIDENCE, read_evidence
from asepsis.core.judged import Judged, read_judged
from asepsis.core.manifest import MANIFEST, ROWS, check_unaltered, read_manifest
from asepsis.errors import CheckpointError
from asepsis.evaluation.key import PoisonKey
from asepsis.inference.files import MANIFEST as GUARD
from asepsis.inference.files import load_guard

Kind = Literal["train", "purify", "guard", "demo", "scan data", "scan model", "guard check"]

_SAVED: tuple[Kind, ...] = ("demo", "scan data", "scan model", "guard check")
DEMO = "demo.json"


@dataclass(frozen=True)
class Source:
    """A folder to report on.

    Attributes
    ----------
    manifest : dict
        What the run recorded, without the list of files.
    judged : Judged or None
        Its rows, where it judged any.
    arrays : dict
        See :mod:`asepsis.core.evidence`.
    poisoned : ndarray of bool [N] or None
        The answer key, kept by the run or given for the report.
    evaluations : list of dict
        What ``asepsis evaluate --json`` wrote, or the rows of the demo.
    guard : dict or None
        The whole content of a guard's file.
    """

    folder: Path
    kind: Kind
    manifest: dict[str, Any]
    judged: Judged | None
    arrays: dict[str, NDArray[Any]]
    poisoned: NDArray[np.bool_] | None
    evaluations: list[dict[str, Any]]
    guard: dict[str, Any] | None = None


def read_source(
    folder: str | Path, *, evaluations: list[Path] | None = None, key: Path | None = None
) -> Source:
    """Read everything a report needs.

    Parameters
    ----------
    folder
        Written by ``train``, ``purify``, ``demo``, ``guard fit``, or a scan or check with ``--output``.
    evaluations
        Files of ``asepsis evaluate --json``.
    key
        Answer key of the rows judged.

    Raises
    ------
    CheckpointError
        It is no such folder, something in it was altered since, or does not fit together.
    DataError
        The key is of other rows.
    """
    root = Path(folder)
    numbers = [_evaluation(path) for path in evaluations or []]
    if (root / GUARD).is_file() and not (root / MANIFEST).is_file():
        content = load_guard(root)
        if key is not None:
            raise CheckpointError(f"{folder} is a guard and judged no rows: a key tells nothing about it")
        return Source(root, "guard", content["manifest"], None, {}, None, numbers, content)
    manifest = read_manifest(root)
    kind = _kind(manifest, folder)
    check_unaltered(root, manifest, ROWS, EVIDENCE, DEMO)
    judged = read_judged(root / ROWS) if (root / ROWS).is_file() else None
    arrays = read_evidence(root)
    n = None if judged is None else len(judged.sample_ids)
    for name, axis in (("loss.values", 1), ("row.poisoned", 0)):
        if name in arrays and arrays[name].shape[axis] != n:
            raise CheckpointError(
                f"{root}: {name} is of {arrays[name].shape[axis]} rows, {ROWS} of {n}; run the command that wrote it again"
            )
    poisoned = arrays.get("row.poisoned")
    if key is not None:
        if judged is None:
            raise CheckpointError(f"{folder} judged no rows: a key tells nothing about it")
        poisoned = PoisonKey.load(key).for_ids(judged.sample_ids)
    if kind == "demo":
        numbers = [*_rows_of_demo(root), *numbers]
    return Source(
        root, kind, {k: v for k, v in manifest.items() if k != "files"}, judged, arrays, poisoned, numbers
    )


def _kind(manifest: dict[str, Any], folder: str | Path) -> Kind:
    for kind in _SAVED:
        if manifest.get("kind") == kind:
            return kind
    if "defense" in manifest:
        return "train"
    if "defenses" in manifest:
        return "purify"
    raise CheckpointError(
        f"{folder}: there is no report of such a folder; there are of those of train, purify, demo, guard fit, and of "
        "scan data, scan model and guard check with --output"
    )


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {"clean_accuracy", "attack_success_rate", "model"} <= set(found):
        raise CheckpointError(
            f"{path} is no evaluation; asepsis evaluate DIR --clean FILE --json {path} writes one"
        )
    return found


def _rows_of_demo(root: Path) -> list[dict[str, Any]]:
    try:
        rows = read_json(root / DEMO)["rows"]
        return [{**row, "model": row["defense"]} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{root / DEMO} cannot be read: {error}; run asepsis demo again") from error
