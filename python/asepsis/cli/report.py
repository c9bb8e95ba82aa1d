"""``asepsis report``: an output folder as a page, as Markdown for a pull request, as SARIF for code scanning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    *,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Written by train, purify, demo, guard fit, or a scan or check with --output."
        ),
    ],
    html: Annotated[Path | None, typer.Option(help="Write one page that needs nothing else here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown for pull requests here.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write findings for code scanning here.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="JSON", help="What evaluate --json wrote, of this model or a control; repeat it."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Answer key of the rows judged: adds the ROC curve.")
    ] = None,
) -> None:
    """Make a page, Markdown or SARIF of an output folder.

    Without an output the Markdown is printed.
    """
    from asepsis.cli._reports import check_reports, write_reports
    from asepsis.evaluation.report import report_of, to_markdown

    check_reports(None, html=html, sarif=sarif, markdown=markdown)
    made = report_of(folder, evaluations=evaluation or [], key=key)
    if html is None and markdown is None and sarif is None:
        typer.echo(to_markdown(made), nl=False)
        return
    write_reports(made, html=html, sarif=sarif, markdown=markdown)
    for path in (html, markdown, sarif):
        if path is not None:
            typer.echo(f"wrote {path}")
