"""Run the cells of a grid, one file each."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from asepsis.data import Data
from asepsis.errors import AsepsisError
from asepsis.evaluation.grid.entries import Made, Site, carry_out
from asepsis.evaluation.grid.memory import Peak
from asepsis.evaluation.grid.plan import Cell, Grid
from asepsis.evaluation.grid.sources import Sources, sources
from asepsis.evaluation.guarded import measure_guarded
from asepsis.evaluation.harness import detection
from asepsis.evaluation.metrics import tpr_at_fpr
from asepsis.evaluation.predict import measure
from asepsis.training.checkpoint import versions, write_whole
from asepsis.training.models import load_trained

MODELS = "models"
_SPENT = "spent.json"


def run_grid(
    grid: Grid,
    output: str | Path,
    *,
    data: str | Path | None = None,
    models: str | Path | None = None,
    defenses: Collection[str] | None = None,
    attacks: Collection[str] | None = None,
    seeds: Collection[int] | None = None,
    on_cell: Callable[[dict[str, Any], float], None] = lambda row, seconds: None,
) -> list[Path]:
    """Run every cell that has no file yet.

    Parameters
    ----------
    output : path
        Folder of the cells. A cell that exists is not run again, so a grid that was stopped goes on.
    data : path, optional
        Folder of the files the grid names.
    models : path, optional
        Where the controls' models are kept for the cells that start from them; by default ``models`` in ``output``.
    defenses, attacks, seeds : collections, optional
        Only these.
    on_cell : callable
        Called with each new cell and its seconds.

    Returns
    -------
    list of Path
        The new cells.
    """
    folder, written = Path(output), []
    folder.mkdir(parents=True, exist_ok=True)
    kept = Path(models) if models is not None else folder / MODELS
    for cell in grid.cells():
        wanted = ((cell.defense, defenses), (cell.attack, attacks), (cell.seed, seeds))
        path = folder / cell.file
        if path.exists() or any(only is not None and value not in only for value, only in wanted):
            continue
        began = time.monotonic()
        row = _measured(grid, cell, None if data is None else Path(data), kept)
        write_whole(path, json.dumps(row, indent=1) + "\n")
        written.append(path)
        on_cell(row, time.monotonic() - began)
        gc.collect()
    return written


def _measured(grid: Grid, cell: Cell, data: Path | None, kept: Path) -> dict[str, Any]:
    rows = sources(grid, data, cell)
    row: dict[str, Any] = {
        "attack": cell.attack,
        "defense": cell.defense,
        "seed": cell.seed,
        "model": grid.model,
    }
    entry = grid.defenses[cell.defense]
    row["entry"] = {"kind": cell.defense, **entry}
    row["poisoned_rows"] = int(rows.key.for_ids(rows.train.sample_ids).sum())
    with Peak() as peak:
        began = time.monotonic()
        try:
            made = _made(grid, cell, rows, kept)
        except AsepsisError as error:
            # a defense that cannot act is a result: it is counted, and no blank
            return row | {"error": f"{type(error).__name__}: {error}", "versions": versions()}
        seconds = time.monotonic() - began
    spent = _spent(kept, cell) or {"seconds": round(seconds, 2), "peak_bytes": peak.bytes}
    return (
        row
        | spent
        | _numbers(grid, cell, rows, made)
        | {"run": _told(made.manifest, data, kept), "versions": versions()}
    )


def _made(grid: Grid, cell: Cell, rows: Sources, kept: Path) -> Made:
    settings = grid.settings_of(cell.seed)

    def control(name: str) -> Path:
        folder = kept / _kept_as(replace(cell, defense=name))
        if not (folder / _SPENT).exists():
            with Peak() as peak:
                began = time.monotonic()
                made = carry_out(name, {}, Site(grid.model, rows, settings, control))
                seconds = time.monotonic() - began
            _save(made, folder, {"seconds": round(seconds, 2), "peak_bytes": peak.bytes})
        return folder

    entry = grid.defenses[cell.defense]
    kind = entry.get("kind", cell.defense)
    if kind not in ("none", "clean-only"):
        return carry_out(cell.defense, entry, Site(grid.model, rows, settings, control))
    folder = control(kind)
    network, tokenizer = load_trained(folder)
    return Made(network, tokenizer, None, None, json.loads((folder / "asepsis.json").read_text("utf-8")))


def _kept_as(cell: Cell) -> str:
    """A model of the clean rows is the same under every attack."""
    attack = "" if cell.defense == "clean-only" else f"--{cell.attack}"
    return f"{cell.defense}{attack}--seed{cell.seed}"


def _spent(kept: Path, cell: Cell) -> dict[str, Any] | None:
    path = kept / _kept_as(cell) / _SPENT
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _save(made: Made, folder: Path, spent: dict[str, Any]) -> None:
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    (folder / "asepsis.json").write_text(json.dumps(made.manifest), encoding="utf-8")
    write_whole(folder / _SPENT, json.dumps(spent))  # last: a folder without it is made anew


def _numbers(grid: Grid, cell: Cell, rows: Sources, made: Made) -> dict[str, Any]:
    test, triggered = rows.tests.open()
    settings = grid.settings_of(cell.seed)
    options: dict[str, Any] = {
        "target_label": None if triggered is None else grid.target_label,
        "max_length": settings.max_length,
    }
    if made.guard is not None:
        return _behind(made, test, triggered, options)
    measured = measure(made.model, made.tokenizer, test, triggered, **options).to_dict()
    found = {} if made.outcome is None else detection(made.outcome, rows.train, rows.key)
    return {
        "clean_accuracy": measured["clean_accuracy"],
        "attack_success_rate": measured["attack_success_rate"],
        "detection": {"of": "training rows", **found} if found else None,
    }


def _behind(made: Made, test: Data, triggered: Data | None, options: dict[str, Any]) -> dict[str, Any]:
    guard = made.guard
    assert guard is not None
    folder = guard.manifest["model"]
    network, tokenizer = load_trained(folder)
    found = measure_guarded(network, tokenizer, guard, test, triggered, **options)
    told = found.to_dict()
    beside = None
    if triggered is not None:
        scores = [guard.check(part).suspicion for part in (test, triggered)]
        truth = np.repeat([False, True], [len(part) for part in scores])
        beside = tpr_at_fpr(np.concatenate(scores), truth, fpr=0.01)
    return {
        "clean_accuracy": told["clean_accuracy"],
        "attack_success_rate": told["attack_success_rate"],
        "detection": {"of": "inputs", **told["guard"], "tpr_at_1_fpr": beside},
    }


def _told(manifest: dict[str, Any], *folders: Path | None) -> dict[str, Any]:
    """The manifest without the folders of this machine: a result is read elsewhere."""
    text = json.dumps(manifest, default=str)
    for folder in folders:
        for written in () if folder is None else (str(folder.resolve()), str(folder)):
            text = text.replace(written.rstrip("/") + "/", "")
    told: dict[str, Any] = json.loads(text)
    return told
