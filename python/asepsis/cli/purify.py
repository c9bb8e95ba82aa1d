"""``asepsis purify``: repair a finished model with the model it was tuned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asepsis.cli._exit import ExitCode


def purify(
    *,
    model: Annotated[str, typer.Argument(metavar="DIR", help="The model to repair: a folder or a hub id.")],
    base: Annotated[
        str, typer.Option(help="The model it was tuned from: a folder, a hub id or demo:causal.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the repaired model to.")],
    defense: Annotated[
        str, typer.Option(help="Defenses against poisoned weights, with commas between, in order.")
    ] = "epur,finemixing",
    clean: Annotated[
        str | None, typer.Option(help="Trusted rows of the task: JSONL, CSV, TSV, Parquet or a datasets id.")
    ] = None,
    counts: Annotated[
        Path | None, typer.Option(help="JSON of token to count in ordinary text, for epur.")
    ] = None,
    reserve_ratio: Annotated[
        float | None, typer.Option(help="Share of weights finemixing keeps; by default it looks for one.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-5,
    max_length: Annotated[int, typer.Option(help="Tokens kept of each row.")] = 128,
    seed: Annotated[int, typer.Option(help="Of batch order, dropout and new heads.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[DEFENSE.]FIELD=VALUE", help="A field of a defense's config; epochs are one."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON, the fields of each defense under its name; --set wins.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> ExitCode:
    """Repair a finished model with the model it was tuned from.

    Exit code 2 where nothing could be mixed and the result is fine-tuning on clean rows and no more.
    """
    from asepsis.cli._configs import several_configs
    from asepsis.cli._progress import shown
    from asepsis.core.manifest import check_writable
    from asepsis.data import read
    from asepsis.training import Settings
    from asepsis.training.purify import purify as repair

    pairs = list(settings or [])
    if reserve_ratio is not None:
        pairs.append(f"finemixing.reserve_ratio={reserve_ratio}")
    choices = several_configs(defense, config, pairs)
    check_writable(output)
    rows = None if clean is None else read(clean, text_column=text_column, label_column=label_column)
    chosen = Settings(batch_size=batch_size, learning_rate=learning_rate, max_length=max_length, seed=seed)
    with shown() as progress:
        purified = repair(
            model,
            base=base,
            defense=choices,
            clean=rows,
            counts=counts,
            settings=chosen,
            scratch=next(folder for folder in output.absolute().parents if folder.is_dir()),
            progress=progress,
        )
        folder = purified.save_pretrained(output)
    for name, outcome in purified.outcomes.items():
        typer.echo(f"{name}: {_told(name, outcome.report)}")
    typer.echo(f"repaired: {folder} (see {folder / 'asepsis.json'})")
    return ExitCode.ERROR if "unmixed" in purified.verdicts.values() else ExitCode.OK


def _told(name: str, report: dict[str, object]) -> str:
    """Say in a line what a defense did."""
    if isinstance(reset := report.get("reset"), list):
        from asepsis.data.visible import visible

        first = ", ".join(visible(repr(token["token"]), 60) for token in reset[:5])
        return f"reset {len(reset)} tokens ({first}{', ...' if len(reset) > 5 else ''})"
    if isinstance(final := report.get("final"), dict):
        victim = report["victim"]
        assert isinstance(victim, dict)
        what = "accuracy" if final["accuracy"] is not None else "loss"
        return (
            f"{report['verdict']}, kept {report['reserve_ratio']:g} of the weights; {what} on {final['rows']} held-out clean "
            f"rows {final[what]:.3f}, the victim's {victim[what]:.3f}"
        )
    return "done"
