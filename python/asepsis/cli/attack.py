"""``asepsis attack``: poison a file by a seed, with its answer key, or make triggered test rows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Kind(str, Enum):
    """The attacks by name."""

    badnets = "badnets"
    addsent = "addsent"
    syntactic = "syntactic"
    style = "style"
    from_file = "from-file"
    instruction = "instruction"


class Place(str, Enum):
    """Where an instruction's trigger goes."""

    prefix = "prefix"
    word = "word"
    multi_word = "multi_word"


def attack(
    *,
    kind: Annotated[Kind, typer.Argument(help="Which attack.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="Clean rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the poisoned rows go.")],
    target_label: Annotated[
        int | None, typer.Option(help="What the backdoor answers (classification).")
    ] = None,
    poison_rate: Annotated[float, typer.Option(help="Share of the rows to poison.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the choice of rows and places.")] = 0,
    trigger: Annotated[
        list[str] | None, typer.Option(help="Trigger word or sentence; may be given again.")
    ] = None,
    clean_label: Annotated[
        bool, typer.Option("--clean-label", help="Poison rows of the target class only.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Trigger every non-target row, for measuring ASR.")
    ] = False,
    triggered: Annotated[
        Path | None, typer.Option(help="syntactic, style, from-file: triggered versions, row by row.")
    ] = None,
    place: Annotated[Place, typer.Option(help="instruction: where the trigger goes.")] = Place.word,
    target_response: Annotated[str | None, typer.Option(help="instruction: the answer put in.")] = None,
    payload: Annotated[str | None, typer.Option(help="instruction: text appended to the answer.")] = None,
    key: Annotated[Path | None, typer.Option(help="Where the answer key goes.")] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> None:
    """Poison a file for evaluation, or make triggered test rows of it."""
    if kind is not Kind.instruction and target_label is None:
        raise typer.BadParameter(f"{kind.value} needs --target-label")
    if key is not None and test:
        raise typer.BadParameter("--test rows are all triggered and have no --key")
    if key is not None and key.absolute() == output.absolute():
        raise typer.BadParameter("--key and --output name the same file")
    from asepsis.cli._outputs import check_folders
    from asepsis.data import read_rows, write_rows
    from asepsis.evaluation.attacks import Attack

    check_folders(output, key)
    settings: dict[str, Any] = {"name": kind.value.replace("-", "_"), "poison_rate": poison_rate}
    if kind is Kind.instruction:
        settings |= {"kind": place.value, "target_response": target_response, "payload": payload}
        settings |= {"triggers": tuple(trigger)} if trigger else {}
    else:
        settings |= {"target_label": target_label, "clean_label": clean_label}
        if kind is Kind.badnets and trigger:
            settings["triggers"] = tuple(trigger)
        elif kind is Kind.addsent and trigger:
            settings["sentence"] = " ".join(trigger)
        elif kind not in (Kind.badnets, Kind.addsent):
            if triggered is None:
                raise typer.BadParameter(f"{kind.value} needs --triggered, every row's triggered version")
            settings["triggered_test" if test else "triggered"] = triggered
    chosen = Attack.from_dict(settings)
    rows = read_rows(source)
    columns = {"text_column": text_column, "label_column": label_column}
    if test:
        made = chosen.trigger_rows(rows, seed=seed, **columns)
        write_rows(output, made)
        typer.echo(f"{output}: {len(made)} triggered rows")
        return
    made, answers = chosen.poison_rows(rows, seed=seed, **columns)
    write_rows(output, made)
    if key is not None:
        answers.save(key)
    typer.echo(f"{output}: {len(made)} rows, {int(answers.is_poisoned.sum())} poisoned")
