"""The page made from a grid's cells. What was not run is blank, and counted; what could not act says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asepsis.core.documents import read_json
from asepsis.data.values import shown
from asepsis.errors import CheckpointError
from asepsis.evaluation.grid.plan import Cell, Grid
from asepsis.evaluation.metrics import mean_interval
from asepsis.evaluation.report.markdown import inline

_HEAD = (
    "defense",
    "seeds",
    "CACC",
    "ASR",
    "AUROC",
    "TPR at 1 % FPR",
    "flagged of the clean",
    "time",
    "memory",
)
# what of a cell's detection is shown
_DETECTION = ("auroc", "tpr_at_1_fpr", "flagged_fpr", "clean_flag_rate")
_NOTE = (
    "Mean over seeds and half the width of its 95 % t-interval. The floor under every ASR is that of `clean-only`. AUROC and TPR are "
    "of training rows, or, marked (i), of inputs; *flagged of the clean* is the share of clean rows or inputs flagged. Time and "
    "memory are multiples of `none`; for what starts from the undefended model they are those of the work after it, but for `cube`, "
    "whose encoder it is."
)
_CAUSAL_NOTE = (
    "*Clean loss* is nats per response token on clean test rows, of the model without a guard. ASR is the share of triggered prompts "
    "that greedy decoding answers with the first tokens of the backdoor's response; *on clean prompts*, how often those without a "
    "trigger are."
)


def read_cells(grid: Grid, cells: str | Path) -> dict[Cell, dict[str, Any]]:
    """Return the cells of a grid that were run, in the grid's order.

    Raises
    ------
    CheckpointError
        A file is no cell, or one of another grid: whatever decides it is declared otherwise by now.
    """
    paths = {cell: Path(cells) / cell.file for cell in grid.cells()}
    found = {cell: _cell(path) for cell, path in paths.items() if path.exists()}
    for cell, row in found.items():
        check_declared(paths[cell], row.get("declared"), grid.declared(cell))
    return found


def check_declared(path: Path, told: Any, declared: Mapping[str, Any]) -> None:
    """Raise when what a file says it was made with is not what the grid declares."""
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} does not say what it was run with; delete it, and it is made again")
    for key in [*declared, *(key for key in told if key not in declared)]:
        if (was := told.get(key)) != (now := declared.get(key)):
            raise CheckpointError(
                f"{path} was run with {shown(key)} {shown(was)}, and the grid declares {shown(now)}; delete it, and it is "
                "made again"
            )


def render(grid: Grid, cells: str | Path, *, plots: Mapping[str, str] | None = None) -> str:
    """Return the Markdown of a grid: a table per attack, and how many of its cells were run.

    Parameters
    ----------
    cells : path
        The folder :func:`~asepsis.evaluation.grid.run_grid` wrote.
    plots : mapping, optional
        By attack the name of its plot, which the page then shows under the table.
    """
    found = read_cells(grid, cells)
    total = sum(1 for _ in grid.cells())
    failed = sum("error" in row for row in found.values())
    lines = [
        f"{len(found)} of {total} cells were run; {total - len(found)} are blank; in {failed} the defense could not act.",
        "",
        _NOTE,
    ]
    if causal := grid.task == "causal":
        lines += ["", _CAUSAL_NOTE]
    for name in grid.defenses:
        if fewer := grid.fewer(name):
            lines += ["", f"`{name}` has fewer rows than the others: {_in_words(fewer)}."]
    head = list(_HEAD)
    if causal:
        head[2:4] = ["clean loss", "ASR", "on clean prompts"]
    for attack in grid.attacks:
        lines += ["", f"### {attack}", ""]
        if not any(cell.attack == attack for cell in found):
            lines.append("No cell of it was run.")
            continue
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for defense in grid.rows_of(attack):
            rows = {
                cell.seed: row
                for cell, row in found.items()
                if (cell.attack, cell.defense) == (attack, defense)
            }
            none = {c.seed: row for c, row in found.items() if (c.attack, c.defense) == (attack, "none")}
            lines.append(_line(defense, rows, none, causal=causal))
        if plots and attack in plots:
            lines += ["", f"![attack success and clean accuracy against {attack}]({plots[attack]})"]
    if errors := sorted({(c.defense, c.attack, row["error"]) for c, row in found.items() if "error" in row}):
        lines += ["", "Could not act:", ""]
        lines += [f"* {defense} on {attack}: {inline(error)}" for defense, attack, error in errors]
    return "\n".join(lines) + "\n"


def _in_words(fewer: Mapping[str, int]) -> str:
    said = {
        "clean_rows": "{} trusted rows",
        "test_rows": "the first {} of the clean and of the triggered test rows",
    }
    return ", ".join(said[key].format(n) for key, n in fewer.items())


def _cell(path: Path) -> dict[str, Any]:
    """Read a cell: what it says is a number or nothing, and what could not act says why."""
    try:
        row = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; delete it, and the cell is run again"
        ) from error
    if not isinstance(row, dict) or not (
        isinstance(row.get("error"), str) if "error" in row else _measured(row)
    ):
        raise CheckpointError(f"{path} is no cell of a grid; delete it, and the cell is run again")
    return row


def _measured(row: dict[str, Any]) -> bool:
    clean, found = row.get("clean_accuracy"), row.get("detection")
    if clean is None and not _number(row.get("clean_loss")):
        return False
    told = (clean, row.get("attack_success_rate"), row.get("clean_success_rate"))
    shares = [share for share in told if share is not None]
    if not all(isinstance(share, dict) and _number(share.get("value")) for share in shares):
        return False
    if not isinstance(found, dict | None):
        return False
    numbers = [(found or {}).get(name) for name in _DETECTION] + [
        row.get(name) for name in ("seconds", "peak_bytes")
    ]
    return all(value is None or _number(value) for value in numbers)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _line(
    defense: str, rows: dict[int, dict[str, Any]], none: dict[int, dict[str, Any]], *, causal: bool
) -> str:
    acted = {seed: row for seed, row in rows.items() if "error" not in row}
    inert = f" ({len(rows) - len(acted)} could not act)" if len(acted) < len(rows) else ""
    mark = " (i)" if any((row.get("detection") or {}).get("of") == "inputs" for row in acted.values()) else ""

    def over(get: Callable[[dict[str, Any]], Any]) -> str:
        values = [get(row) for row in acted.values()]
        return spread([float(value) for value in values if value is not None])

    def share(name: str) -> str:
        return over(lambda row: (row.get(name) or {}).get("value"))

    def found(*names: str) -> str:
        text = over(
            lambda row: next(
                (d[n] for n in names if (d := row.get("detection") or {}).get(n) is not None), None
            )
        )
        return text + mark if text else ""

    def times(name: str) -> str:
        pairs = [(row.get(name), none.get(seed, {}).get(name)) for seed, row in acted.items()]
        ratios = [a / b for a, b in pairs if a and b]
        return f"{sum(ratios) / len(ratios):.1f} x" if ratios and defense != "none" else ""

    shares = ["attack_success_rate", "clean_success_rate"][: 2 if causal else 1]
    columns = [
        defense,
        f"{len(acted)}{inert}" if rows else "",
        over(clean_value),
        *map(share, shares),
        found("auroc"),
        found("tpr_at_1_fpr"),
        found("flagged_fpr", "clean_flag_rate"),
        times("seconds"),
        times("peak_bytes"),
    ]
    return f"| {' | '.join(columns)} |"


def clean_value(row: Mapping[str, Any]) -> float:
    """Return what a cell does on clean test rows: its accuracy, or of a causal model its loss."""
    accuracy = row["clean_accuracy"]
    return float(row["clean_loss"] if accuracy is None else accuracy["value"])


def spread(values: Sequence[float]) -> str:
    """Return the mean and half the width of its 95 % interval; the value alone where there is one."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    mean, low, high = mean_interval(values)
    return f"{mean:.3f} ± {(high - low) / 2:.3f}"
