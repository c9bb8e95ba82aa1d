"""``asepsis attack``: poison a file by a seed, with its answer key, or a model's weights, or make triggered test rows.

Attacks on data take a file of clean rows and write a poisoned one; attacks on weights take a model, and clean rows under
``--data``, and write a victim. With ``--test`` both take clean rows and write triggered ones.
"""

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
    ep = "ep"
    sos = "sos"
    surgery = "surgery"
    lwp = "lwp"


_ON_WEIGHTS = frozenset({Kind.ep, Kind.sos, Kind.surgery, Kind.lwp})


class Place(str, Enum):
    """Where an instruction's trigger goes."""

    prefix = "prefix"
    word = "word"
    multi_word = "multi_word"


def attack(
    *,
    kind: Annotated[Kind, typer.Argument(help="Which attack.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN|MODEL", help="Clean rows; for ep, sos, surgery and lwp the model to poison."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the poisoned rows, or the victim's folder, go.")
    ],
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
    target_response: Annotated[str | None, typer.Option(help="instruction, ep: the answer put in.")] = None,
    payload: Annotated[str | None, typer.Option(help="instruction: text appended to the answer.")] = None,
    key: Annotated[Path | None, typer.Option(help="Where the answer key goes.")] = None,
    data: Annotated[
        str | None, typer.Option(help="ep, sos, surgery, lwp: clean rows, as the attacker has them.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="ep, sos, surgery, lwp: passes of the fine-tuning. [default: 2]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="ep, sos, surgery, lwp: rows per step. [default: 32]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="ep, sos, surgery, lwp: peak of the fine-tuning. [default: 5e-05]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="ep, sos, surgery, lwp: tokens kept of each row. [default: 128]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="ep, sos, surgery, lwp: a field of the recipe."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> None:
    """Poison a file or a model's weights for evaluation, or make triggered test rows.

    badnets, addsent, syntactic, style, from-file, instruction IN -o FILE: poison rows. ep, sos, surgery, lwp MODEL --data
    ROWS -o DIR: make a model with a backdoor in its weights. Any of them IN -o FILE --test: triggered rows, to measure
    attack success with.
    """
    columns = {"text_column": text_column, "label_column": label_column}
    training = _given(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, max_length=max_length
    )
    if kind in _ON_WEIGHTS:
        others: dict[str, Any] = {"--key": key, "--triggered": triggered, "--payload": payload}
        others |= {"--clean-label": clean_label or None, "--place": None if place is Place.word else place}
        _refuse(kind, others)
        recipe = _given(
            target_label=target_label,
            target_response=target_response,
            trigger=tuple(trigger) if trigger else None,
            poison_rate=poison_rate,
        )
        if target_label is None and target_response is None:
            raise typer.BadParameter(f"{kind.value} needs --target-label")
        from asepsis.cli._attack_weights import make_victim, write_triggered

        given: dict[str, Any] = {"output": output, "recipe": recipe, "pairs": settings or [], "seed": seed}
        if test:
            _refuse(kind, {"--data": data, **_options(training)}, why="--test trains nothing")
            write_triggered(kind.value, source, **given, columns=columns)
        elif data is None:
            raise typer.BadParameter(f"{kind.value} needs --data, the clean rows to poison the model with")
        else:
            make_victim(kind.value, str(source), data=data, **given, training=training, columns=columns)
        return
    _refuse(kind, {"--data": data, "--set": settings or None, **_options(training)}, why="it poisons rows")
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
    fields: dict[str, Any] = {"name": kind.value.replace("-", "_"), "poison_rate": poison_rate}
    if kind is Kind.instruction:
        fields |= {"kind": place.value, "target_response": target_response, "payload": payload}
        fields |= {"triggers": tuple(trigger)} if trigger else {}
    else:
        fields |= {"target_label": target_label, "clean_label": clean_label}
        if kind is Kind.badnets and trigger:
            fields["triggers"] = tuple(trigger)
        elif kind is Kind.addsent and trigger:
            fields["sentence"] = " ".join(trigger)
        elif kind not in (Kind.badnets, Kind.addsent):
            if triggered is None:
                raise typer.BadParameter(f"{kind.value} needs --triggered, every row's triggered version")
            fields["triggered_test" if test else "triggered"] = triggered
    chosen = Attack.from_dict(fields)
    rows = read_rows(source)
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


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _options(training: dict[str, Any]) -> dict[str, Any]:
    return {f"--{name.replace('_', '-')}": value for name, value in training.items()}


def _refuse(kind: Kind, options: dict[str, Any], *, why: str = "it poisons weights") -> None:
    """Refuse options that this attack would ignore."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{kind.value} takes no {', '.join(given)}: {why}")
