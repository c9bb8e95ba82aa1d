"""``asepsis scan data``: which rows look poisoned? Exit code 1 when some do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asepsis.cli._exit import ExitCode


def scan_data(
    *,
    data: Annotated[str, typer.Argument(metavar="FILE", help="Untrusted rows.")],
    model: Annotated[
        str,
        typer.Option(
            help="What is trained to tell: a folder, a hub id or demo:encoder; for psim the poisoned model."
        ),
    ],
    method: Annotated[str, typer.Option(help="A defense that can scan.")] = "abl",
    clean: Annotated[str | None, typer.Option(help="Trusted rows that set the threshold.")] = None,
    target_fpr: Annotated[
        float | None, typer.Option(help="Wanted share of clean rows flagged; needs --clean.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Answer key: adds AUROC, TPR, FPR and precision.")] = None,
    json_output: Annotated[
        Path | None, typer.Option("--json", help="Write every row's suspicion here.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to keep everything found in, for asepsis report.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report here.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write findings for code scanning here.")] = None,
    seed: Annotated[int, typer.Option(help="Of batch order, dropout and new heads.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens kept of each row.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method's config.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> ExitCode:
    """Say which rows look poisoned."""
    if target_fpr is not None and clean is None:
        raise typer.BadParameter("--target-fpr needs --clean rows to calibrate on")
    from asepsis.cli._configs import defense_config
    from asepsis.cli._outputs import check_folders
    from asepsis.cli._progress import shown
    from asepsis.cli._reports import check_reports, kept, write_reports
    from asepsis.data import read
    from asepsis.data.visible import visible
    from asepsis.errors import NoRows
    from asepsis.evaluation.key import PoisonKey
    from asepsis.evaluation.metrics import detection_metrics
    from asepsis.evaluation.report import save_scan
    from asepsis.training import Settings
    from asepsis.training import scan as scanning
    from asepsis.training.checkpoint import write_whole

    choice = defense_config(method, None, settings or [])
    if choice is None:
        raise typer.BadParameter("method none scans nothing")
    check_folders(json_output)
    check_reports(output, html=html, sarif=sarif)
    try:
        rows = read(data, text_column=text_column, label_column=label_column)
    except NoRows as error:
        typer.echo(f"asepsis: nothing to scan: {visible(str(error), 2000)}", err=True)
        return ExitCode.NOTHING
    answers = PoisonKey.load(key).for_ids(rows.sample_ids) if key is not None else None
    trusted = None
    if clean is not None:
        trusted = read(clean, text_column=text_column, label_column=label_column, n_classes=rows.n_classes)
    with shown() as progress:
        scan = scanning.scan_data(
            rows,
            method=choice,
            model=model,
            clean=trusted,
            target_fpr=target_fpr,
            settings=Settings(
                seed=seed, max_length=max_length, learning_rate=learning_rate, batch_size=batch_size
            ),
            progress=progress,
        )
    metrics = None if answers is None else detection_metrics(scan.suspicion, scan.flagged, answers)
    content = scan.to_dict(metrics)
    if json_output is not None:
        write_whole(json_output, json.dumps(content, indent=1) + "\n")
    with kept(output, needed=html is not None or sarif is not None) as folder:
        if folder is not None:
            save_scan(folder, scan, metrics=metrics, poisoned=answers)
            write_reports(folder, html=html, sarif=sarif)
    _say(content)
    return {"findings": ExitCode.FINDINGS, "none": ExitCode.OK, "inconclusive": ExitCode.ERROR}[scan.verdict]


def _say(content: dict[str, object]) -> None:
    meaning = {
        "findings": "rows stand out",
        "none": "no row stands out by this method, which does not prove that none is poisoned",
        "inconclusive": "the evidence is too weak to decide; a larger model or more rows may tell",
    }[str(content["verdict"])]
    typer.echo(f"{content['method']}: flagged {content['flagged']} of {content['n']} rows: {meaning}")
    if content["metrics"] is not None:
        typer.echo(json.dumps(content["metrics"]))
