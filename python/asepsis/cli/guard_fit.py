"""``asepsis guard fit``: a detector for a model, with a threshold for a wanted false-positive rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from asepsis.core.conformal import Threshold


def guard_fit(
    *,
    model: Annotated[str, typer.Argument(metavar="DIR", help="The model to guard: a folder or a hub id.")],
    clean: Annotated[
        str, typer.Option(help="Trusted rows of the task: JSONL, CSV, TSV, Parquet or a datasets id.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the guard to.")],
    target_fpr: Annotated[float, typer.Option(help="Wanted share of clean inputs flagged.")] = 0.01,
    confidence: Annotated[
        float | None,
        typer.Option(help="Hold that share with this probability, not only on average; needs more rows."),
    ] = None,
    detector: Annotated[str, typer.Option(help="What tells triggered inputs.")] = "psim",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the detector's config."),
    ] = None,
    max_length: Annotated[
        int,
        typer.Option(
            help="Tokens read of each row and input; the rest is unseen. Not for onion, which reads all."
        ),
    ] = 128,
    batch_size: Annotated[int, typer.Option(help="Rows per batch where nothing is learned.")] = 32,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> None:
    """Fit a detector to a model on clean rows, at a wanted false-positive rate."""
    from asepsis.cli._configs import detector_config
    from asepsis.cli._progress import shown
    from asepsis.data import read
    from asepsis.inference.files import check_target
    from asepsis.inference.guard import Guard

    config = detector_config(detector, settings or [])
    check_target(output)
    rows = read(clean, text_column=text_column, label_column=label_column)
    with shown() as progress:
        guard = Guard.fit(
            model,
            rows,
            detector=config,
            target_fpr=target_fpr,
            confidence=confidence,
            seed=seed,
            max_length=max_length,
            batch_size=batch_size,
            progress=progress,
        )
        folder = guard.save_pretrained(output)
    typer.echo(f"{guard.detector.name}: {_told(guard.threshold)}")
    report = guard.manifest["report"]
    if watch := report.get("watch"):
        last, says = watch["seen"][-1], "usable" if watch["usable"] else "NOT usable by its own stop rule"
        typer.echo(
            f"its module, after {report['steps']} steps: clean rows' mean {last['mean']:.2f}, 95 % quantile {last['p95']:.2f}; {says}"
        )
    if guard.control is not None:
        typer.echo(f"without it, the model's own confidence: {_told(guard.control)}")
    typer.echo(f"guard: {folder}")


def _told(threshold: Threshold) -> str:
    wanted = "given" if threshold.target_fpr is None else f"wanted {threshold.target_fpr:g}"
    return (
        f"flags above {threshold.value:.4g}; share of clean rows {threshold.expected_fpr:.4f} "
        f"[{threshold.low:.4f}, {threshold.high:.4f}], {wanted}, from {threshold.n} rows"
    )
