"""``asepsis bench defenses``: a declared grid of defenses and attacks, cell by cell, and its table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


def bench_defenses(
    *,
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="YAML: model, data, attacks, defenses, seeds.")
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the cells; those that are there are not run again.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the files that the grid names.")] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="Where the controls' models are kept; by default in the output folder."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only these defenses or attacks.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Write the Markdown here as well, and beside it a plot for each attack (matplotlib)."
        ),
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render", help="Run nothing; make the table of what is there.")
    ] = False,
) -> None:
    """Run a grid of defenses against attacks, each beside its controls, and print its table."""
    from asepsis.cli._outputs import check_folders
    from asepsis.cli._progress import shown
    from asepsis.errors import ConfigError
    from asepsis.evaluation.grid import plot_cells, read_grid, render, run_grid
    from asepsis.evaluation.grid.apart import runner
    from asepsis.evaluation.report import require_matplotlib
    from asepsis.training.checkpoint import write_whole

    check_folders(table)
    if table is not None:
        require_matplotlib("--table", instead="without it the table is printed all the same")
    declared = read_grid(grid)
    named = set(only or ())
    if unknown := sorted(named - set(declared.defenses) - set(declared.attacks)):
        raise ConfigError(f"--only: the grid has no {', '.join(unknown)}")
    if not render_only:
        run_grid(
            declared,
            output,
            data=data,
            models=models,
            defenses=(named & set(declared.defenses)) or None,
            attacks=(named & set(declared.attacks)) or None,
            seeds=seed or None,
            on_cell=_say,
            runner=partial(runner(), within=shown),
        )
    if table is not None:
        plots = plot_cells(declared, output)
        names = {attack: f"{table.stem}-{attack}.svg" for attack in plots}
        for attack, plot in plots.items():
            write_whole(table.with_name(names[attack]), plot)
        heading = f"# The grid {grid.name}\n\n```\nasepsis bench defenses {grid.name} --output CELLS --data FOLDER --table PAGE\n```\n\n"
        write_whole(table, heading + render(declared, output, plots=names))
    typer.echo(render(declared, output))


def _say(row: dict[str, Any], seconds: float) -> None:
    from asepsis.data.visible import visible

    name = f"{row['defense']}, {row['attack']}, seed {row['seed']}"
    if "error" in row:
        typer.echo(f"{name}: {visible(row['error'], 2000)}", err=True)
        return
    success = row["attack_success_rate"]
    asr = "" if success is None else f" ASR {success['value']:.3f}"
    accuracy = row["clean_accuracy"]
    clean = f"loss {row['clean_loss']:.3f}" if accuracy is None else f"CACC {accuracy['value']:.3f}"
    typer.echo(f"{name}: {clean}{asr} ({seconds:.0f} s)", err=True)
