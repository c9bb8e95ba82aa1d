"""The half of ``asepsis attack`` that makes a victim: a model with a backdoor in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def make_victim(
    name: str,
    model: str,
    *,
    data: str,
    output: Path,
    recipe: dict[str, Any],
    pairs: list[str],
    seed: int,
    training: dict[str, Any],
    columns: dict[str, Any],
) -> None:
    """Poison the weights of ``model`` with clean rows from ``data`` and write the victim to ``output``."""
    from asepsis.cli._progress import shown
    from asepsis.core.manifest import check_writable
    from asepsis.data import read
    from asepsis.evaluation.attacks.weights import poison_weights
    from asepsis.training import Settings

    check_writable(output)
    chosen = _recipe(name, recipe, pairs)
    rows = read(data, **columns)
    with shown() as progress:
        victim = poison_weights(
            model, rows, attack=chosen, seed=seed, settings=Settings(**training), progress=progress
        )
    folder = victim.save_pretrained(output)
    tokens = ", ".join(f"{word} {list(ids)}" for word, ids in victim.tokens.items())
    typer.echo(f"{folder}: a victim of {name}; trigger and tokens: {tokens}")


def write_triggered(
    name: str,
    source: Path,
    *,
    output: Path,
    recipe: dict[str, Any],
    pairs: list[str],
    seed: int,
    columns: dict[str, Any],
) -> None:
    """Write the triggered test rows of ``source``."""
    from asepsis.cli._outputs import check_folders
    from asepsis.data import read, read_rows, write_rows
    from asepsis.evaluation.attacks import apply_to_rows

    check_folders(output)
    chosen = _recipe(name, recipe, pairs)
    rows = read_rows(source)
    made = chosen.triggered(read(rows, **columns), seed=seed)
    if made.labels is None:
        raise typer.BadParameter(
            f"{name} --test is for rows with labels; instruction --test triggers instructions"
        )
    written = apply_to_rows(rows, made, None, **columns)
    write_rows(output, written)
    typer.echo(f"{output}: {len(written)} triggered rows")


def _recipe(name: str, fields: dict[str, Any], pairs: list[str]) -> Any:
    from asepsis.cli._configs import parsed_pairs
    from asepsis.evaluation.attacks.weights import WEIGHT_ATTACKS

    kind = WEIGHT_ATTACKS[name]
    return kind.from_dict({**fields, **kind.parse_strings(parsed_pairs(pairs))})
