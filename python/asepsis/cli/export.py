"""``asepsis export``: hand a result on as plain files, or merge an adapter into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    *,
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by train.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to; must not exist yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a plain checkpoint, adapter merged in.")
    ] = False,
) -> None:
    """Write a trained folder as plain files, or merge its adapter into its base."""
    from asepsis.cli._progress import shown
    from asepsis.training.export import export_folder

    with shown():
        export_folder(model, output, merge=merge)
    typer.echo(f"exported {model} to {output}")
