"""``asepsis guard check``: which rows look triggered? Exit code 1 when more do than clean rows would."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from asepsis.cli._exit import ExitCode


class FailOn(str, Enum):
    """From which finding on the exit code is 1."""

    more = "more"
    any = "any"
    never = "never"


def guard_check(
    *,
    guard: Annotated[Path, typer.Argument(metavar="GUARD", help="A folder written by guard fit.")],
    data: Annotated[
        str, typer.Argument(metavar="FILE", help="Rows to judge; only their texts or prompts are read.")
    ],
    model: Annotated[
        str | None, typer.Option(help="The guarded model, where it has moved since the guard was fitted.")
    ] = None,
    json_output: Annotated[
        Path | None, typer.Option("--json", help="Write every row's suspicion here.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to keep everything found in, for asepsis report.")
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(help="Exit with 1 for more flagged rows than chance explains, for any, or never."),
    ] = FailOn.more,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
) -> ExitCode:
    """Say which rows of a file look triggered."""
    from asepsis.cli._outputs import check_folders
    from asepsis.cli._progress import shown
    from asepsis.data.visible import visible
    from asepsis.errors import NoRows
    from asepsis.evaluation.report import check_found, save_check
    from asepsis.inference.guard import Guard
    from asepsis.training.checkpoint import write_whole

    check_folders(json_output)
    if output is not None:
        check_found(output)
    with shown():
        loaded = Guard.load(guard, model)
        try:
            found = loaded.check(data, control=True, text_column=text_column)
        except NoRows as error:
            typer.echo(f"asepsis: nothing to scan: {visible(str(error), 2000)}", err=True)
            return ExitCode.NOTHING
    if json_output is not None:
        write_whole(json_output, json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
    if output is not None:
        save_check(output, found)
    rows, flagged = found.data, int(found.flagged.sum())
    expected = found.threshold.expected_fpr * len(rows)
    more = "more than chance explains" if found.verdict == "findings" else "no more than chance explains"
    typer.echo(
        f"{found.detector}: flagged {flagged} of {len(rows)} rows; of clean rows about {expected:.1f}: {more}"
    )
    if (control := found.control_flagged) is not None:
        typer.echo(f"without it, the model's own confidence flags {int(control.sum())}")
    if found.cut:
        typer.echo(f"read in part only: {found.cut} of {len(rows)} rows; nothing is said of the rest of them")
    for row in found.flagged.nonzero()[0][:10].tolist():
        typer.echo(f"  row {row}  {found.suspicion[row]:.4f}  {visible(rows.texts[row], 60)}")
    wanted = {FailOn.more: found.verdict == "findings", FailOn.any: flagged > 0, FailOn.never: False}
    return ExitCode.FINDINGS if wanted[fail_on] else ExitCode.OK
