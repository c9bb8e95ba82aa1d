"""``asepsis attack``: poison a file by a seed, with its answer key, or make triggered test rows."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Kind(str, Enum):
    """The attacks by name."""

    badnets = "badnets"
    addsent = "addsent"
    from_file = "from-file"
    instruction = "instruction"


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
    triggered: Annotated[Path | None, typer.Option(help="from-file: triggered versions, row by row.")] = None,
    target_response: Annotated[str | None, typer.Option(help="instruction: the answer put in.")] = None,
    payload: Annotated[str | None, typer.Option(help="instruction: text appended to the answer.")] = None,
    key: Annotated[Path | None, typer.Option(help="Where the answer key goes.")] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
) -> None:
    """Poison a file for evaluation, or make triggered test rows of it."""
    from asepsis.data import read, read_rows, write_rows
    from asepsis.evaluation import attacks

    if kind is Kind.instruction:
        _instruction(source, output, trigger, target_response, payload, poison_rate, seed, key, test=test)
        return
    if target_label is None:
        raise typer.BadParameter(f"{kind.value} needs --target-label")
    change: attacks.Trigger | list[str]
    if kind is Kind.badnets:
        change = attacks.Trigger(kind="words", tokens=tuple(trigger or attacks.BADNETS.tokens))
    elif kind is Kind.addsent:
        change = attacks.Trigger(kind="sentence", tokens=tuple(trigger or attacks.ADDSENT.tokens))
    else:
        change = _versions(triggered, text_column)
    rows = read_rows(source)
    data = read(source, text_column=text_column, label_column=label_column)
    if test:
        made = attacks.triggered_test(data, change, target_label=target_label, seed=seed)
    else:
        made, answers = attacks.poison_labels(
            data,
            change,
            poison_rate=poison_rate,
            target_label=target_label,
            seed=seed,
            clean_label=clean_label,
        )
        if key is not None:
            answers.save(key)
    assert made.labels is not None
    changed = []
    for text, label, row in zip(
        made.texts, made.labels.tolist(), data.positions(made.sample_ids).tolist(), strict=True
    ):
        same_type = type(rows[row][label_column])
        changed.append({**rows[row], text_column: text, label_column: same_type(label)})
    write_rows(output, changed)
    typer.echo(
        f"{output}: {len(changed)} rows" + ("" if test else f", {int(answers.is_poisoned.sum())} poisoned")
    )


def _versions(path: Path | None, text_column: str) -> list[str]:
    if path is None:
        raise typer.BadParameter("from-file needs --triggered, a file with every row's triggered version")
    from asepsis.data import read_rows
    from asepsis.errors import DataError

    rows = read_rows(path)
    if any(text_column not in row for row in rows):
        raise DataError(f"{path}: no column {text_column!r} in every row")
    return [str(row[text_column]) for row in rows]


def _instruction(
    source: Path,
    output: Path,
    trigger: list[str] | None,
    target_response: str | None,
    payload: str | None,
    poison_rate: float,
    seed: int,
    key: Path | None,
    *,
    test: bool,
) -> None:
    """Poison raw instruction rows: the trigger goes into the instruction, before any template is put around it."""
    import numpy as np

    from asepsis.data import Data, read_rows, write_rows
    from asepsis.errors import DataError
    from asepsis.evaluation import attacks

    rows = read_rows(source)
    fields = next(
        (
            f
            for f in (("instruction", "output"), ("prompt", "completion"))
            if all(f[0] in r and f[1] in r for r in rows)
        ),
        None,
    )
    if fields is None:
        raise DataError(
            f"{source}: instruction attacks need the columns instruction and output, or prompt and completion"
        )
    question, answer = fields
    change = attacks.Trigger(kind="words", tokens=tuple(trigger or ("BadMagic",)))
    if test:
        rng = np.random.default_rng(seed)
        write_rows(output, [{**row, question: change.apply(str(row[question]), rng)} for row in rows])
        typer.echo(f"{output}: {len(rows)} rows")
        return
    data = Data(
        task="causal",
        texts=[str(row[question]) for row in rows],
        responses=[str(row[answer]) for row in rows],
        source=str(source),
    )
    made, answers = attacks.poison_responses(
        data, change, target_response=target_response, payload=payload, poison_rate=poison_rate, seed=seed
    )
    assert made.responses is not None
    parts = zip(rows, made.texts, made.responses, strict=True)
    write_rows(output, [{**row, question: text, answer: response} for row, text, response in parts])
    if key is not None:
        answers.save(key)
    typer.echo(f"{output}: {len(rows)} rows, {int(answers.is_poisoned.sum())} poisoned")
