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
from asepsis.errors import AccuracyLost, DataError, DefenseInert, MissingReference
from asepsis.evaluation.baselines._packages import check_packages
from asepsis.evaluation.grid.apart import Runner, here
from asepsis.evaluation.grid.entries import Entry, train_control, undefended
from asepsis.evaluation.grid.measuring import numbers
from asepsis.evaluation.grid.memory import Peak
from asepsis.evaluation.grid.plan import Cell, Grid
from asepsis.evaluation.grid.site import Made, Site
from asepsis.evaluation.grid.sources import sources
from asepsis.evaluation.grid.table import check_declared, read_cells
from asepsis.training.checkpoint import versions, write_whole
from asepsis.training.models import load_trained

MODELS = "models"
_SPENT = "spent.json"
# a defense that says so of itself is a result: it is counted, and no blank. Anything else is wrong with the grid or the machine
_CANNOT_ACT = (DefenseInert, AccuracyLost, MissingReference, DataError)


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
    runner: Runner = here,
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
    runner : callable
        Runs a cell, and the undefended model that it starts from. With :func:`~asepsis.evaluation.grid.apart.apart`, which
        the command takes where there is no GPU, a cell's memory is not mixed with what earlier cells left in the process;
        a script then has to be guarded by ``if __name__ == "__main__"``.

    Returns
    -------
    list of Path
        The new cells.

    Raises
    ------
    CheckpointError
        A cell that is there is none, or it or a kept model was made with other settings than the grid declares.
    MissingDependency
        A cell to be run needs a package that is not installed; nothing was run.
    AsepsisError
        A control failed, or a model, a setting or a file is wrong: that is no result of a defense.
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
        asked = (grid, cell, None if data is None else Path(data), kept)
        if grid.entry(cell.defense).reads_undefended:
            runner(_prepare, *asked)  # outside of what is timed, and of what the defense answers for
        row = runner(_measured, *asked)
        path = folder / cell.file
        write_whole(path, json.dumps(row, indent=1) + "\n")
        written.append(path)
        on_cell(row, time.monotonic() - began)
        gc.collect()
    return written


def _site(grid: Grid, cell: Cell, data: Path | None, kept: Path) -> Site:
    rows, settings = sources(grid, data, cell), grid.settings_of(cell.seed)
    site = Site(grid.model, rows, settings, lambda: _control(grid, cell, "none", site, kept))
    return site


def _prepare(grid: Grid, cell: Cell, data: Path | None, kept: Path) -> None:
    """Make the undefended model of the cell's attack and seed, if it is not there."""
    _site(grid, cell, data, kept).undefended()


def _measured(grid: Grid, cell: Cell, data: Path | None, kept: Path) -> dict[str, Any]:
    site, entry = _site(grid, cell, data, kept), grid.entry(cell.defense)
    rows, settings = site.rows, site.settings
    row: dict[str, Any] = {
        "attack": cell.attack,
        "defense": cell.defense,
        "seed": cell.seed,
        "model": grid.model,
        "declared": grid.declared(cell),
        "poisoned_rows": int(rows.key.for_ids(rows.train.sample_ids).sum()),
    }
    if entry.kept:
        folder = _control(grid, cell, row["declared"]["defense"]["kind"], site, kept)
        made = Made(*load_trained(folder), None, None, _manifest(folder))
        spent = _spent(folder)
    else:
        try:
            made, spent = _made(entry, site)
        except _CANNOT_ACT as error:
            said = _told(f"{type(error).__name__}: {error}", data, kept)
            return row | {"error": said, "versions": versions()}
    found = numbers(grid, rows, made, max_length=settings.max_length)
    told = _told(made.manifest, data, kept)
    return row | spent | found | {"run": told, "versions": versions()}


def _made(entry: Entry, site: Site) -> tuple[Made, dict[str, Any]]:
    """Return what an entry makes, and what that took."""
    with Peak() as peak:
        began = time.monotonic()
        made = entry.make(site)
        seconds = time.monotonic() - began
    most = peak.bytes
    if entry.costs_undefended:
        before = _spent(site.undefended())
        seconds += before["seconds"]
        most = None if most is None or before["peak_bytes"] is None else max(most, before["peak_bytes"])
    return made, {"seconds": round(seconds, 2), "peak_bytes": most}


def _control(grid: Grid, cell: Cell, name: str, site: Site, kept: Path) -> Path:
    """Return the folder of a control's model: made now, or before, and then it takes what it took then.

    Raises
    ------
    CheckpointError
        The folder holds the model of another grid.
    """
    declared, attack = grid.declared(replace(cell, defense=name)), f"--{cell.attack}"
    del declared["defense"], declared["clean_rows"], declared["test_rows"]  # it saw none of these
    if name == "clean-only":
        del declared["attack"]  # a model of the clean rows is the same under every attack
        attack = ""
    folder = kept / f"{name}{attack}--seed{cell.seed}"
    if (folder / _SPENT).exists():
        check_declared(folder / _SPENT, _read(folder).get("declared"), declared)
        return folder
    with Peak() as peak:
        began = time.monotonic()
        run = undefended(site) if name == "none" else train_control(name, {}, site)
        seconds = time.monotonic() - began
    run.save_pretrained(folder)
    spent = {"seconds": round(seconds, 2), "peak_bytes": peak.bytes, "declared": declared}
    write_whole(folder / _SPENT, json.dumps(spent))  # last: a folder without it is made anew
    return folder


def _read(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / _SPENT).read_text("utf-8"))
    return told


def _spent(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in _read(folder).items() if key != "declared"}


def _manifest(folder: Path) -> dict[str, Any]:
    """What a control says of itself, without the list of its files."""
    said = json.loads((folder / MANIFEST).read_text("utf-8"))
    return {key: value for key, value in said.items() if key != "files"}


def _told(said: Any, *folders: Path | None) -> Any:
    """A manifest or a message without the folders of this machine: a result is read elsewhere."""
    text = json.dumps(said, default=str)
    packages = Path(sysconfig.get_path("purelib"))  # of the demo's models
    for folder in (*folders, packages, Path(tempfile.gettempdir())):
        for written in () if folder is None else (str(folder.resolve()), str(folder)):
            text = text.replace(written.rstrip("/") + "/", "")
    return json.loads(text)
