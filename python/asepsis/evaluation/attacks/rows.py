"""Attacks on the rows of a file: what is read from the result is what the attacks on `Data` would have made."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asepsis.data import Data
from asepsis.data.templates import Kind, instruction_kind, render
from asepsis.data.values import listed
from asepsis.errors import DataError
from asepsis.evaluation.attacks.responses import Answer, choose_responses, ordinary
from asepsis.evaluation.attacks.triggers import Trigger
from asepsis.evaluation.key import PoisonKey

Rows = Sequence[Mapping[str, Any]]


def apply_to_rows(
    rows: Rows,
    poisoned: Data,
    key: PoisonKey | None,
    *,
    text_column: str = "text",
    label_column: str = "label",
) -> list[dict[str, Any]]:
    """Write an attacked classification set back into the rows it was read from, all columns kept.

    Parameters
    ----------
    rows : sequence of mappings
        Every row of the file; a sample id is a 0-based position in it.
    poisoned : Data
        Poisoned rows, or a triggered test set.
    key : PoisonKey, or None
        Only the rows it names as poisoned get their new text and label; the others stay equal to what they were. With
        None (a triggered test set) every row of ``poisoned`` does.

    Returns
    -------
    list of dict
        One row for each of ``poisoned``, in its order. A label keeps the type it had (``"0"`` turns into ``"1"``).

    Raises
    ------
    DataError
        ``poisoned`` has no labels, or its ids are not positions of ``rows``.
    """
    if poisoned.labels is None:
        raise DataError(f"{poisoned.source}: rows have responses, not labels; use poison_rows")
    ids = poisoned.sample_ids
    if ids.min() < 0 or ids.max() >= len(rows):
        raise DataError(
            f"{poisoned.source}: sample ids must be positions in the {len(rows)} rows given, got {ids.min()}..{ids.max()}; "
            "read the rows without an id column"
        )
    changed = np.ones(len(ids), bool) if key is None else key.for_ids(ids)
    made = []
    columns = zip(ids.tolist(), changed.tolist(), poisoned.texts, poisoned.labels.tolist(), strict=True)
    for at, is_changed, text, label in columns:
        row = dict(rows[at])
        if is_changed:
            row[text_column], row[label_column] = text, type(row[label_column])(label)
        made.append(row)
    return made


def poison_rows(
    rows: Rows,
    trigger: Trigger,
    *,
    target_response: str | None = None,
    payload: str | None = None,
    poison_rate: float,
    seed: int,
) -> tuple[list[dict[str, Any]], PoisonKey]:
    """Poison instruction rows of a file; the key names them by position.

    The trigger goes into the ``instruction``, the ``prompt`` or the last user turn, the answer into the ``output``, the
    ``completion`` or the last assistant turn. Reading the result gives the set that
    :func:`~asepsis.evaluation.attacks.poison_responses` makes of the rows read, for the same seed.

    Parameters and errors: :func:`~asepsis.evaluation.attacks.poison_responses`.
    """
    answer = Answer(target_response=target_response, payload=payload)
    places = _places(rows)
    rng = np.random.default_rng(seed)
    responses = [place.response for place in places]
    chosen = choose_responses(responses, answer, poison_rate=poison_rate, rng=rng)
    made = [dict(row) for row in rows]
    for at in chosen.tolist():
        made[at] = places[at].with_both(trigger.apply(places[at].instruction, rng), answer.of(responses[at]))
    return made, PoisonKey(np.arange(len(rows)), np.isin(np.arange(len(rows)), chosen))


def trigger_rows(
    rows: Rows,
    trigger: Trigger,
    *,
    target_response: str | None = None,
    payload: str | None = None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return every instruction row, triggered, with the backdoor's answer as its response.

    Rows that already answer so are left out. See :func:`poison_rows`.
    """
    answer = Answer(target_response=target_response, payload=payload)
    places = _places(rows)
    rng = np.random.default_rng(seed)
    return [
        places[at].with_both(trigger.apply(places[at].instruction, rng), answer.of(places[at].response))
        for at in ordinary([place.response for place in places], answer).tolist()
    ]


class _Place:
    """Where the instruction and the response stand in one row."""

    def __init__(self, row: Mapping[str, Any], kind: Kind, where: str) -> None:
        render(kind, row, where)  # raises on whatever could not be read back
        self.row = row
        if kind == "instruction":
            self.paths: tuple[tuple[Any, ...], ...] = (("instruction",), ("output",))
        elif kind == "prompt" and not isinstance(row["prompt"], list):
            self.paths = (("prompt",), ("completion",))
        else:
            self.paths = _last_exchange(
                row, ("messages",) if kind == "messages" else ("prompt", "completion"), where
            )
        self.instruction, self.response = (str(_at(row, path)) for path in self.paths)

    def with_both(self, instruction: str, response: str) -> dict[str, Any]:
        made = copy.deepcopy(dict(self.row))
        for path, text in zip(self.paths, (instruction, response), strict=True):
            _at(made, path[:-1])[path[-1]] = text
        return made


def _places(rows: Rows) -> list[_Place]:
    if not rows:
        raise DataError("no rows to attack")
    kind = instruction_kind(list(rows[0]))
    if kind is None:
        raise DataError(
            f"the instruction attack needs instruction,output or prompt,completion or messages; columns there: "
            f"{listed(rows[0])}"
        )
    return [_Place(row, kind, f"row {number}") for number, row in enumerate(rows)]


def _last_exchange(row: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[tuple[Any, ...], ...]:
    """Return the paths of the last user turn before the last assistant turn, and of that assistant turn."""
    turns = [(column, i, turn["role"]) for column in columns for i, turn in enumerate(row[column])]
    last = max(i for i, turn in enumerate(turns) if turn[2] == "assistant")
    asked = [turn for turn in turns[:last] if turn[2] == "user"]
    if not asked:
        raise DataError(
            f"{where}: no user turn before the last assistant turn, so there is no place for a trigger; "
            f"roles there: {listed(role for _, _, role in turns)}"
        )
    return tuple((*turn[:2], "content") for turn in (asked[-1], turns[last]))


def _at(row: Any, path: Sequence[Any]) -> Any:
    for step in path:
        row = row[step]
    return row
