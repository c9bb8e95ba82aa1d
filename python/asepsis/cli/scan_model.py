"""``asepsis scan model``: which tokens moved more than training explains? Exit code 1 when some did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asepsis.cli._exit import ExitCode

if TYPE_CHECKING:
    from asepsis.core.drift import ModelScan


class FailOn(str, Enum):
    """From which finding on the exit code is 1."""

    high = "high"
    elevated = "elevated"
    never = "never"


def scan_model(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="The model in doubt: a checkpoint or adapter folder, demo:encoder."
        ),
    ],
    base: Annotated[
        str, typer.Option(help="What it was trained from, from a source you trust: a folder or demo:encoder.")
    ],
    counts: Annotated[
        Path | None, typer.Option(help="JSON {token: count} of clean text, instead of wordfreq.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Clean text to count tokens in: .txt by line, or a data file.")
    ] = None,
    language: Annotated[str, typer.Option(help="Of wordfreq's word list.")] = "en",
    top: Annotated[int, typer.Option(min=0, help="Tokens to list.")] = 50,
    json_output: Annotated[Path | None, typer.Option("--json", help="Write everything found here.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to keep everything found in, for asepsis report.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report here.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write findings for code scanning here.")] = None,
    fail_on: Annotated[
        FailOn, typer.Option(help="Exit with 1 from this finding on; what cannot be decided exits with 2.")
    ] = FailOn.high,
) -> ExitCode:
    """Compare a model with its base: which tokens moved more than training explains.

    Reads files alone: nothing is loaded or run.
    """
    if counts is not None and corpus is not None:
        raise typer.BadParameter("--counts and --corpus both say how frequent tokens are: give one")
    from asepsis.cli._outputs import check_folders
    from asepsis.cli._reports import check_reports, kept, write_reports
    from asepsis.core.drift import scan_model as scanning
    from asepsis.data.visible import visible
    from asepsis.errors import NoRows
    from asepsis.evaluation.report import save_model_scan
    from asepsis.training.checkpoint import versions, write_whole

    check_folders(json_output)
    check_reports(output, html=html, sarif=sarif)
    texts = None if corpus is None else _texts(corpus)
    try:
        scan = scanning(model, base=base, counts=counts, corpus=texts, language=language, top=top)
    except NoRows as error:
        typer.echo(f"asepsis: nothing to scan: {visible(str(error), 2000)}", err=True)
        return ExitCode.NOTHING
    content = {**scan.to_dict(), "model": model, "base": base, "versions": versions()}
    if json_output is not None:
        write_whole(json_output, json.dumps(content, indent=1, allow_nan=False) + "\n")
    with kept(output, needed=html is not None or sarif is not None) as folder:
        if folder is not None:
            save_model_scan(folder, scan, tuned=model, base=base, versions=versions())
            write_reports(folder, html=html, sarif=sarif)
    _say(scan)
    if scan.verdict == "inconclusive":
        return ExitCode.ERROR
    found = {token.verdict for token in scan.tokens}
    wanted = {FailOn.high: {"high"}, FailOn.elevated: {"high", "elevated"}, FailOn.never: set()}[fail_on]
    return ExitCode.FINDINGS if found & wanted else ExitCode.OK


def _texts(corpus: Path) -> list[str]:
    """Every text of a file: its lines, or what stands in the columns of its rows."""
    from asepsis.data import read_rows
    from asepsis.errors import DataError

    if corpus.suffix == ".txt":
        try:
            return corpus.read_text(encoding="utf-8").splitlines()
        except ValueError as error:
            raise DataError(f"{corpus} is not UTF-8: {error}") from error
    return [value for row in read_rows(corpus) for value in row.values() if isinstance(value, str)]


def _say(scan: ModelScan) -> None:
    from asepsis.evaluation.report.models import TOKEN_HEAD, token_row
    from asepsis.evaluation.report.sections import token_of

    report = scan.report
    typer.echo(f"{scan.verdict}: {' '.join(scan.reasons)}")
    typer.echo(
        f"{report['rows']:,} rows compared, {report['moved']:,} moved, {report['counted']:,} counted; "
        f"frequencies: {report['frequencies']}"
    )
    _table([TOKEN_HEAD, *(token_row(token.to_dict()) for token in scan.tokens[:20])])
    moved = sorted((t for t in scan.tensors if t.relative), key=lambda t: -(t.relative or 0.0))
    if moved:
        _table([["tensor", "relative drift"], *([token_of(t.name), f"{t.relative:.2e}"] for t in moved[:5])])


def _table(rows: Sequence[Sequence[str]]) -> None:
    if len(rows) == 1:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [
            f"{first:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)),
        ]
        typer.echo("  ".join(cells).rstrip())
