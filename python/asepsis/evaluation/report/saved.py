"""Folders of scans and checks: what ``--output`` of these commands writes, and what their pages are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.core.drift import ModelScan
from asepsis.core.evidence import EVIDENCE, Arrays, moved_tokens, write_evidence
from asepsis.core.folders import whole_folder
from asepsis.core.judged import write_judged
from asepsis.core.manifest import (
    FORMAT,
    MANIFEST,
    ROWS,
    check_writable,
    read_manifest,
    write_manifest,
)
from asepsis.errors import CheckpointError
from asepsis.evaluation.report.folder import DEMO
from asepsis.evaluation.report.html import to_html
from asepsis.evaluation.report.kinds import report_of
from asepsis.inference.report import Checked
from asepsis.training import Run
from asepsis.training.scan import Scan

_FOUND = ("scan data", "scan model", "guard check")


def save_scan(
    folder: str | Path,
    scan: Scan,
    *,
    metrics: dict[str, float | None] | None = None,
    poisoned: NDArray[np.bool_] | None = None,
) -> Path:
    """Write a data scan as a folder, which appears whole or not at all; ``metrics`` and ``poisoned`` come from a key."""
    target = Path(folder)
    check_found(target)
    found = {
        "method": scan.method,
        "verdict": scan.verdict,
        "threshold": scan.threshold,
        "n": len(scan.data),
        "flagged": int(scan.flagged.sum()),
        "metrics": metrics,
        "source": scan.data.source,
    }
    arrays = dict(scan.evidence) if poisoned is None else {**scan.evidence, "row.poisoned": poisoned}
    with whole_folder(target) as scratch:
        write_judged(scratch / ROWS, scan.data, suspicion=scan.suspicion, flagged=scan.flagged)
        _finish(scratch, arrays, {**scan.manifest, "kind": "scan data", "scan": found})
    return target


def save_check(folder: str | Path, found: Checked) -> Path:
    """Write what a guard found as a folder, which appears whole or not at all."""
    target = Path(folder)
    check_found(target)
    content = {name: value for name, value in found.to_dict().items() if name not in ("rows", "manifest")}
    with whole_folder(target) as scratch:
        write_judged(scratch / ROWS, found.data, suspicion=found.suspicion, flagged=found.flagged)
        manifest = {**found.manifest, "kind": "guard check", "check": content | {"source": found.data.source}}
        _finish(scratch, {}, manifest)
    return target


def save_model_scan(
    folder: str | Path, scan: ModelScan, *, tuned: str, base: str, versions: dict[str, str]
) -> Path:
    """Write a model scan as a folder, which appears whole or not at all.

    Parameters
    ----------
    tuned, base
        What the models were called.
    versions
        Of the packages that took part.
    """
    target = Path(folder)
    check_found(target)
    drift = scan.scores["drift"]
    ids = np.flatnonzero(scan.eligible & np.isfinite(drift) & (drift > 0))
    arrays = (
        moved_tokens(ids, drift[ids], None if scan.frequency is None else scan.frequency[ids])
        if len(ids)
        else {}
    )
    manifest = {
        "kind": "scan model",
        "model": tuned,
        "base": base,
        "scan": scan.to_dict(),
        "versions": versions,
    }
    with whole_folder(target) as scratch:
        _finish(scratch, arrays, manifest)
    return target


def check_found(folder: Path) -> None:
    """Raise ``CheckpointError`` where a folder holds something else than an earlier scan or check: it would be replaced."""
    check_writable(folder)
    if (folder / MANIFEST).exists() and read_manifest(folder).get("kind") not in _FOUND:
        raise CheckpointError(
            f"{folder} holds a model or something else that is no scan, and would be replaced; name another folder"
        )


def check_demo(folder: Path) -> None:
    """Raise ``CheckpointError`` where a folder holds something else than an earlier demo: files in it are replaced."""
    check_writable(folder, manifest=DEMO, otherwise="holds no demo")


def save_demo(folder: Path, content: dict[str, Any], run: Run, poisoned: NDArray[np.bool_]) -> None:
    """Write ``demo.json``, what its defended run found, ``report.html`` of these, and the manifest of all.

    Parameters
    ----------
    content
        Of ``demo.json``.
    run
        The defended one.
    poisoned
        ``[N]``, the key of its rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome, data = run.outcome, run.data
    for name in (MANIFEST, EVIDENCE, "report.html"):
        (folder / name).unlink(missing_ok=True)
    (folder / DEMO).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    flagged = np.isin(data.sample_ids, outcome.flagged)
    isolated = np.isin(data.sample_ids, outcome.isolated)
    write_judged(folder / ROWS, data, suspicion=outcome.suspicion, flagged=flagged, isolated=isolated)
    manifest = {**run.manifest, "kind": "demo", "format": FORMAT}
    _finish(folder, {**outcome.evidence, "row.poisoned": poisoned}, manifest)
    (folder / "report.html").write_text(to_html(report_of(folder)), encoding="utf-8")
    write_manifest(folder, manifest)  # once more, with the page


def _finish(scratch: Path, arrays: Arrays, manifest: dict[str, Any]) -> None:
    write_evidence(scratch, arrays)
    write_manifest(scratch, {**manifest, "format": FORMAT})
