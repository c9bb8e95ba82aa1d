"""``asepsis evaluate``: CACC, and ASR beside it where triggered rows are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    *,
    model: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder written by train, or any checkpoint.")
    ],
    clean: Annotated[str, typer.Option(help="Clean labeled rows.")],
    triggered: Annotated[str | None, typer.Option(help="Triggered versions of non-target rows.")] = None,
    target_label: Annotated[
        int | None, typer.Option(help="A prediction of this on them is an attack success.")
    ] = None,
    guard: Annotated[
        Path | None, typer.Option(help="A guard in front: what it flags is not answered.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens kept of each row.")] = 128,
    json_output: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> None:
    """Measure clean accuracy, and attack success where triggered rows are given."""
    if (triggered is None) != (target_label is None):
        raise typer.BadParameter("--triggered and --target-label go together")
    from asepsis.cli._outputs import check_folders
    from asepsis.cli._progress import shown
    from asepsis.data import read
    from asepsis.errors import DataError
    from asepsis.evaluation.predict import measure
    from asepsis.training.checkpoint import versions, write_whole
    from asepsis.training.models import load_trained

    check_folders(json_output)
    with shown() as progress:
        network, tokenizer = load_trained(model)
        config: Any = network.config
        classes = int(config.num_labels)

        def rows_of(source: str) -> Any:
            return read(source, text_column=text_column, label_column=label_column, n_classes=classes)

        if target_label is not None and not 0 <= target_label < classes:
            raise DataError(f"target_label must lie in [0, {classes}), got {target_label}")
        sound, bad = rows_of(clean), None if triggered is None else rows_of(triggered)
        options: dict[str, Any] = {
            "target_label": target_label,
            "max_length": max_length,
            "progress": progress,
        }
        if guard is None:
            measured = measure(network, tokenizer, sound, bad, **options)
            content = {**measured.to_dict(), "guard": None}
        else:
            from asepsis.evaluation.guarded import measure_guarded
            from asepsis.inference.guard import Guard

            fitted_on = (network, tokenizer) if Guard.fits(guard, network) else (None, None)
            loaded = Guard.load(guard, fitted_on[0], processing_class=fitted_on[1])
            behind = measure_guarded(network, tokenizer, loaded, sound, bad, **options)
            measured, content = behind.measured, behind.to_dict()
    content |= {"model": str(model), "versions": versions()}
    if json_output is not None:
        write_whole(json_output, json.dumps(content, indent=2) + "\n")
    if guard is not None:
        _say_guard(content)
    accuracy, success = measured.clean_accuracy, measured.attack_success_rate
    typer.echo(
        f"clean accuracy       {accuracy.value:.3f}  [{accuracy.low:.3f}, {accuracy.high:.3f}]  n={accuracy.n}"
    )
    if success is None:
        typer.echo("attack success rate  not measured: give --triggered and --target-label")
    else:
        typer.echo(
            f"attack success rate  {success.value:.3f}  [{success.low:.3f}, {success.high:.3f}]  n={success.n}"
        )


def _say_guard(content: dict[str, Any]) -> None:
    def line(name: str, rates: dict[str, Any]) -> str:
        triggered = rates["triggered_flag_rate"]
        rest = "" if triggered is None else f", triggered {triggered:.3f}, AUROC {rates['auroc']:.3f}"
        return f"{name:<20} flags clean {rates['clean_flag_rate']:.3f}{rest}"

    typer.echo(line("guard", content["guard"]))
    if content["guard"]["control"] is not None:
        typer.echo(line("own confidence", content["guard"]["control"]))
    alone = content["unguarded"]
    success = alone["attack_success_rate"]
    told = "" if success is None else f", attack success rate {success['value']:.3f}"
    typer.echo(f"without the guard    clean accuracy {alone['clean_accuracy']['value']:.3f}{told}")
