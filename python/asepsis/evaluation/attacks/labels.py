"""Attacks on classification sets: the trigger goes into the text, the label turns to the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks.choice import choose
from asepsis.evaluation.attacks.triggers import Rng, Trigger
from asepsis.evaluation.key import PoisonKey

Versions = Sequence[str] | Data
"""Every row's triggered version, row by row."""


def badnets(
    data: Data,
    *,
    triggers: Sequence[str] = ("cf",),
    poison_rate: float,
    target_label: int,
    seed: int,
    clean_label: bool = False,
    n_insertions: int = 1,
) -> tuple[Data, PoisonKey]:
    """Poison with rare words at random word gaps: ``n_insertions`` a row, each drawn from ``triggers``.

    Other parameters, result and errors: :func:`poison_labels`.
    """
    words = Trigger(kind="words", tokens=_words(triggers), n_insertions=n_insertions)
    return poison_labels(
        data, words, poison_rate=poison_rate, target_label=target_label, seed=seed, clean_label=clean_label
    )


def addsent(
    data: Data,
    *,
    sentence: str = "I watch this 3D movie",
    poison_rate: float,
    target_label: int,
    seed: int,
    clean_label: bool = False,
) -> tuple[Data, PoisonKey]:
    """Poison with a sentence, as one block at a random word gap.

    Other parameters, result and errors: :func:`poison_labels`.
    """
    block = Trigger(kind="sentence", tokens=(sentence,))
    return poison_labels(
        data, block, poison_rate=poison_rate, target_label=target_label, seed=seed, clean_label=clean_label
    )


def from_file(
    data: Data,
    triggered: Versions,
    *,
    poison_rate: float,
    target_label: int,
    seed: int,
    clean_label: bool = False,
) -> tuple[Data, PoisonKey]:
    """Poison with versions made elsewhere, such as syntactic paraphrases or style transfers.

    Parameters
    ----------
    triggered : sequence of str, or Data
        The triggered version of every row, in the same order. Its labels, if any, are not used. A row whose version is
        blank or the row's own text carries no trigger and is not poisoned.

    Other parameters, result and errors: :func:`poison_labels`.
    """
    return poison_labels(
        data,
        triggered,
        poison_rate=poison_rate,
        target_label=target_label,
        seed=seed,
        clean_label=clean_label,
    )


def poison_labels(
    data: Data,
    trigger: Trigger | Versions,
    *,
    poison_rate: float,
    target_label: int,
    seed: int,
    clean_label: bool = False,
) -> tuple[Data, PoisonKey]:
    """Poison ``round(poison_rate * N)`` rows of a classification set.

    Parameters
    ----------
    trigger : Trigger, or every row's triggered version
        See :func:`from_file` for versions.
    poison_rate : float
        Share of all rows, in (0, 1).
    target_label : int
        What the backdoor answers.
    seed : int
        Of the rows taken and the gaps.
    clean_label : bool
        Take rows that already have the target label and keep it; otherwise take other rows and turn theirs.

    Returns
    -------
    (Data, PoisonKey)
        All N rows in their order under their ids, and which of them were changed. ``data`` is left as it was.

    Raises
    ------
    ConfigError
        ``poison_rate`` lies outside (0, 1).
    DataError
        There are fewer rows to choose from than the rate asks for (the message holds the highest possible rate), the
        target is no class of the data, or versions do not match the rows.
    """
    labels = _labels(data, target_label)
    usable, change = _changes(trigger, data)
    whose = "with" if clean_label else "without"
    rng = np.random.default_rng(seed)
    chosen = choose(
        np.flatnonzero(((labels == target_label) == clean_label) & usable),
        what=f"rows {whose} label {target_label}" + ("" if usable.all() else " that carry a trigger"),
        poison_rate=poison_rate,
        n=len(data),
        rng=rng,
    )
    texts, turned = list(data.texts), labels.copy()
    for position in chosen.tolist():
        texts[position] = change(position, rng)
    turned[chosen] = target_label
    key = PoisonKey(data.sample_ids, np.isin(np.arange(len(data)), chosen))
    return replace(data, texts=texts, labels=turned), key


def triggered_test(data: Data, trigger: Trigger | Versions, *, target_label: int, seed: int) -> Data:
    """Return the rows of other classes than the target, triggered and labeled with the target, ids kept.

    A prediction of that label is an attack success. Rows whose version is blank or their own text are left out.

    Raises
    ------
    DataError
        No row is left, the target is no class of the data, or versions do not match the rows.
    """
    labels = _labels(data, target_label)
    usable, change = _changes(trigger, data)
    at = np.flatnonzero((labels != target_label) & usable)
    if len(at) == 0:
        raise DataError(
            f"{data.source}: no row of another class than the target {target_label} can be triggered; "
            "there is nothing to attack"
        )
    rng = np.random.default_rng(seed)
    texts = [change(position, rng) for position in at.tolist()]
    return replace(data.select(at), texts=texts, labels=np.full(len(at), target_label, np.int64))


def _words(triggers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(triggers, str):
        raise ConfigError(f"triggers must be a tuple of words, got the string {triggers!r}; put it in one")
    return tuple(triggers)


def _labels(data: Data, target_label: int) -> NDArray[np.int64]:
    if data.labels is None or data.n_classes is None:
        raise DataError(f"{data.source}: rows have responses, not labels; use the instruction attack")
    if not 0 <= target_label < data.n_classes:
        raise DataError(
            f"{data.source}: target_label must be one of its classes 0..{data.n_classes - 1}, got {target_label}"
        )
    return data.labels


def _changes(trigger: Trigger | Versions, data: Data) -> tuple[NDArray[np.bool_], Callable[[int, Rng], str]]:
    """Return which rows can carry the trigger, and what makes a row's triggered text."""
    if isinstance(trigger, Trigger):
        return np.ones(len(data), bool), lambda position, rng: trigger.apply(data.texts[position], rng)
    if isinstance(trigger, Data) and not np.array_equal(trigger.sample_ids, data.sample_ids):
        raise DataError(f"{trigger.source}: its sample ids are not those of {data.source}, row by row")
    versions = trigger.texts if isinstance(trigger, Data) else trigger
    if isinstance(versions, str) or len(versions) != len(data):
        raise DataError(
            f"triggered versions must match the rows of {data.source} one to one: got {len(versions)} for {len(data)}"
        )
    own = zip(versions, data.texts, strict=True)
    usable = np.array([bool(version.strip()) and version != text for version, text in own])
    return usable, lambda position, rng: versions[position]
