"""``asepsis verify``: whether a folder, its data and its base are still what its manifest says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asepsis.cli._exit import ExitCode


def verify(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder written by train, purify, guard or attack.")
    ],
    data: Annotated[str | None, typer.Option(help="The rows it was trained on, as they are now.")] = None,
    base: Annotated[str | None, typer.Option(help="The model it was made from, as it is now.")] = None,
    json_output: Annotated[Path | None, typer.Option("--json", help="Write what was found here.")] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> ExitCode:
    """Say whether a folder, its data and its base are still what its manifest says.

    Exit code 1 where something differs, 2 where it cannot be told.
    """
    from asepsis.cli._outputs import check_folders
    from asepsis.core import manifest
    from asepsis.data import read
    from asepsis.training.checkpoint import write_whole

    check_folders(json_output)
    classes = manifest.read_manifest(folder).get("n_classes")
    if not isinstance(classes, int):  # causal LMs have none, and who wrote the file is not known
        classes = None
    rows = (
        None
        if data is None
        else read(data, text_column=text_column, label_column=label_column, n_classes=classes)
    )
    found = manifest.verify(folder, data=rows, base=base)
    if json_output is not None:
        write_whole(json_output, json.dumps(found.to_dict(), indent=2) + "\n")
    for check in found.checks:
        if check.status != "same":
            typer.echo(f"{check.status:8} {check.what!r}: {check.detail}")
    same = sum(check.status == "same" for check in found.checks)
    typer.echo(f"{found.verdict}: {same} of {len(found.checks)} compared are the same")
    codes = {"intact": ExitCode.OK, "altered": ExitCode.FINDINGS, "inconclusive": ExitCode.ERROR}
    return codes[found.verdict]
