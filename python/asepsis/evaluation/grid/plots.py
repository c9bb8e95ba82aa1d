"""The plots of a grid: for each attack, what every defense leaves of its success and of the accuracy, over the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asepsis.evaluation.grid.plan import Cell, Grid
from asepsis.evaluation.grid.table import clean_value, read_cells
from asepsis.evaluation.metrics import mean_interval
from asepsis.evaluation.report.svg import BAD, CALM, INK, LINE, drawn, standalone

_ROW, _MARGIN = 21, 84  # of the viewBox: a defense, and what stands above and below all of them


def plot_cells(grid: Grid, cells: str | Path) -> dict[str, str]:
    """Return an SVG document for each attack of which a cell was run.

    A row is a defense: a filled point for ASR with its 95 % interval over seeds, an open one for CACC, and a dashed line where
    the ASR of ``clean-only`` lies. A causal grid has no CACC, and a clean control no ASR. Cells not run, and defenses that could
    not act, leave their row empty.

    Parameters
    ----------
    cells : path
        The folder :func:`~asepsis.evaluation.grid.run_grid` wrote.

    Raises
    ------
    MissingDependency
        matplotlib is not installed.
    """
    found = read_cells(grid, cells)
    return {
        attack: _panel(grid, attack, found)
        for attack in grid.attacks
        if any(cell.attack == attack for cell in found)
    }


def _panel(grid: Grid, attack: str, found: Mapping[Cell, Mapping[str, Any]]) -> str:
    names = grid.rows_of(attack)
    acted: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for cell, row in found.items():
        if cell.attack == attack and "error" not in row:
            acted[cell.defense].append(row)
    success = {name: _success(rows) for name, rows in acted.items()}
    accuracy = {name: [clean_value(row) for row in rows] for name, rows in acted.items()}
    floor = success.get("clean-only") or []

    def draw(axes: Any) -> None:
        for at, name in enumerate(names):
            _point(axes, at, success[name], BAD, BAD)
            if grid.task == "classification":
                _point(axes, at, accuracy[name], CALM, "none")
        if floor:
            axes.axvline(
                sum(floor) / len(floor), color=INK, linewidth=1, linestyle=(0, (4, 3)), label="floor"
            )
        for label, color, face in (("ASR", BAD, BAD), ("CACC", CALM, "none")):
            if label == "ASR" or grid.task == "classification":
                axes.plot([], [], "o", label=label, markerfacecolor=face, markeredgecolor=color)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, handlelength=1.4, borderaxespad=0.2)

    said = f"{attack}: attack success rate and clean accuracy of each defense"
    return standalone(drawn(f"grid-{attack}", draw, height=_MARGIN + _ROW * len(names)), title=said)


def _success(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(row["attack_success_rate"]["value"]) for row in rows if row["attack_success_rate"]]


def _point(axes: Any, at: int, values: Sequence[float], color: str, face: str) -> None:
    if len(values) > 1:
        _, low, high = mean_interval(values)
        axes.plot([max(low, 0), min(high, 1)], [at, at], color=color, linewidth=1.4)
    if values:
        mean = sum(values) / len(values)
        axes.plot([mean], [at], "o", markersize=6, markerfacecolor=face, markeredgecolor=color)
