"""Run the cells of a grid, one file each."""

from __future__ import annotations

import gc
import json
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from asepsis.core.manifest import MANIFEST
from asepsis.errors import AsepsisError, MissingDependency
from asepsis.evaluation.baselines._packages import check_packages
from asepsis.evaluation.grid.entries import train_control, undefended
from asepsis.evaluation.grid.measuring import numbers
from asepsis.evaluation.grid.memory import Peak
from asepsis.evaluation.grid.plan import Cell, Grid
from asepsis.evaluation.grid.site import Made, Site
from asepsis.evaluation.grid.sources import Sources, sources
from asepsis.evaluation.grid.table import read_cells
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

    Raises
    ------
    CheckpointError
        A cell that is there is none, or was run with other settings than the grid declares.
    MissingDependency
        A cell to be run needs a package that is not installed; nothing was run.
    """
    folder, written = Path(output), []
    folder.mkdir(parents=True, exist_ok=True)
    read_cells(grid, folder)  # what is not to be mixed with this grid's stops it here, and not after hours
    kept = Path(models) if models is not None else folder / MODELS
    todo = []
    for cell in grid.cells():
        wanted = ((cell.defense, defenses), (cell.attack, attacks), (cell.seed, seeds))
        if all(only is None or value in only for value, only in wanted) and not (folder / cell.file).exists():
            todo.append(cell)
    check_packages({name for cell in todo for name in grid.entry(cell.defense).packages})
    for cell in todo:
        began = time.monotonic()
        row = _measured(grid, cell, None if data is None else Path(data), kept)
        path = folder / cell.file
        write_whole(path, json.dumps(row, indent=1) + "\n")
        written.append(path)
        on_cell(row, time.monotonic() - began)
        gc.collect()
    return written


def _measured(grid: Grid, cell: Cell, data: Path | None, kept: Path) -> dict[str, Any]:
    rows = sources(grid, data, cell)
    settings = grid.settings_of(cell.seed)
    row: dict[str, Any] = {
        "attack": cell.attack,
        "defense": cell.defense,
        "seed": cell.seed,
        "model": grid.model,
        "entry": grid.declared(cell.defense),
        "poisoned_rows": int(rows.key.for_ids(rows.train.sample_ids).sum()),
    }
    try:
        made, spent = _made(grid, cell, rows, kept)
    except MissingDependency:
        raise  # that is this machine's, and no result
    except AsepsisError as error:
        # a defense that cannot act is a result: it is counted, and no blank
        return row | {"error": f"{type(error).__name__}: {error}", "versions": versions()}
    found = numbers(grid, rows, made, max_length=settings.max_length)
    told = _told(made.manifest, data, kept)
    return row | spent | found | {"run": told, "versions": versions()}


def _made(grid: Grid, cell: Cell, rows: Sources, kept: Path) -> tuple[Made, dict[str, Any]]:
    """Return what a cell's entry makes, and what that took; a control that was there before takes what it took then."""

    def control(name: str) -> Path:
        folder = kept / _kept_as(replace(cell, defense=name))
        if not (folder / _SPENT).exists():
            with Peak() as peak:
                began = time.monotonic()
                run = undefended(site) if name == "none" else train_control(name, {}, site)
                seconds = time.monotonic() - began
            run.save_pretrained(folder)
            spent = {"seconds": round(seconds, 2), "peak_bytes": peak.bytes}
            write_whole(folder / _SPENT, json.dumps(spent))  # last: a folder without it is made anew
        return folder

    site = Site(grid.model, rows, grid.settings_of(cell.seed), lambda: control("none"))
    entry = grid.entry(cell.defense)
    if entry.kept:
        folder = control(grid.defenses[cell.defense].get("kind", cell.defense))
        network, tokenizer = load_trained(folder)
        return Made(network, tokenizer, None, None, _manifest(folder)), _spent(folder)
    if entry.reads_undefended:
        control("none")  # made here, outside of what is timed
    with Peak() as peak:
        began = time.monotonic()
        made = entry.make(site)
        seconds = time.monotonic() - began
    most = peak.bytes
    if entry.costs_undefended:
        before = _spent(control("none"))
        seconds += before["seconds"]
        most = None if most is None or before["peak_bytes"] is None else max(most, before["peak_bytes"])
    return made, {"seconds": round(seconds, 2), "peak_bytes": most}


def _kept_as(cell: Cell) -> str:
    """A model of the clean rows is the same under every attack."""
    attack = "" if cell.defense == "clean-only" else f"--{cell.attack}"
    return f"{cell.defense}{attack}--seed{cell.seed}"


def _spent(folder: Path) -> dict[str, Any]:
    spent: dict[str, Any] = json.loads((folder / _SPENT).read_text("utf-8"))
    return spent


def _manifest(folder: Path) -> dict[str, Any]:
    """What a control says of itself, without the list of its files."""
    said = json.loads((folder / MANIFEST).read_text("utf-8"))
    return {key: value for key, value in said.items() if key != "files"}


def _told(manifest: dict[str, Any], *folders: Path | None) -> dict[str, Any]:
    """The manifest without the folders of this machine: a result is read elsewhere."""
    text = json.dumps(manifest, default=str)
    packages = Path(sysconfig.get_path("purelib"))  # of the demo's models
    for folder in (*folders, packages, Path(tempfile.gettempdir())):
        for written in () if folder is None else (str(folder.resolve()), str(folder)):
            text = text.replace(written.rstrip("/") + "/", "")
    told: dict[str, Any] = json.loads(text)
    return told
