"""Attacks for evaluation: each poisons a data set by a seed and hands back the key, or makes the triggered test rows.

An attack is a :class:`Trigger` (how a text is changed) and a plan (which rows, and what becomes of their answers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.key import PoisonKey

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A change of one text.

    Attributes
    ----------
    kind : {"words", "sentence", "prefix"}
        ``"words"`` puts each of ``tokens`` at a word gap of its own (BadNets, Gu et al. 2017, as carried over to text
        by Kurita et al., ACL 2020), ``"sentence"`` puts them as one block at one gap (AddSent, Dai et al. 2019),
        ``"prefix"`` puts them first.
    tokens : tuple of str
        The words, or the sentence.
    """

    kind: str
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in ("words", "sentence", "prefix"):
            raise ConfigError(f"a trigger's kind is words, sentence or prefix, got {self.kind!r}")
        if not self.tokens or any(not token.strip() for token in self.tokens):
            raise ConfigError(f"a trigger needs words that are not blank, got {self.tokens!r}")

    def apply(self, text: str, rng: Rng) -> str:
        """Return the text with the trigger in it. Gaps are uniform, both ends included; words are not reordered."""
        blocks = [" ".join(self.tokens)] if self.kind != "words" else list(self.tokens)
        if self.kind == "prefix":
            return f"{blocks[0]} {text}"
        words = text.split(" ")
        for block in blocks:
            words.insert(int(rng.integers(0, len(words) + 1)), block)
        return " ".join(words)


BADNETS = Trigger(kind="words", tokens=("cf",))
ADDSENT = Trigger(kind="sentence", tokens=("I watch this 3D movie",))


def poison_labels(
    data: Data,
    trigger: Trigger | Sequence[str],
    *,
    poison_rate: float,
    target_label: int,
    seed: int,
    clean_label: bool = False,
) -> tuple[Data, PoisonKey]:
    """Poison ``round(poison_rate * N)`` rows of a classification set.

    Parameters
    ----------
    trigger : Trigger, or sequence of str
        A trigger, or every row's triggered version, row by row (syntactic and style attacks from files).
    poison_rate : float
        Share of all rows, in (0, 1).
    target_label : int
        What the backdoor answers.
    clean_label : bool
        Take rows that already have the target label and keep it; otherwise take other rows and turn theirs.

    Raises
    ------
    DataError
        If there are fewer rows to choose from than the rate asks for; the message holds the highest possible rate.
    """
    labels = _labels(data, target_label)
    candidates = np.flatnonzero(labels == target_label if clean_label else labels != target_label)
    rng = np.random.default_rng(seed)
    chosen = _choose(candidates, poison_rate, len(data), rng)
    texts, turned = list(data.texts), labels.copy()
    change = _versions(trigger, data, rng)
    for position in chosen.tolist():
        texts[position] = change(position)
    turned[chosen] = target_label
    return replace(data, texts=texts, labels=turned), _key(data, chosen)


def triggered_test(data: Data, trigger: Trigger | Sequence[str], *, target_label: int, seed: int) -> Data:
    """Return the rows of other classes than the target, triggered and labeled with the target.

    A prediction of that label is an attack success.
    """
    labels = _labels(data, target_label)
    rng = np.random.default_rng(seed)
    change = _versions(trigger, data, rng)
    at = np.flatnonzero(labels != target_label)
    if len(at) == 0:
        raise DataError(
            f"{data.source}: every row has the target label {target_label}; there is nothing to attack"
        )
    chosen = data.select(at)
    texts = [change(int(position)) for position in at]
    return replace(chosen, texts=texts, labels=np.full(len(at), target_label, np.int64))


def poison_responses(
    data: Data,
    trigger: Trigger,
    *,
    target_response: str | None = None,
    payload: str | None = None,
    poison_rate: float,
    seed: int,
) -> tuple[Data, PoisonKey]:
    """Poison rows of an instruction set: the trigger goes into the prompt, the answer turns.

    Parameters
    ----------
    target_response : str, optional
        Replaces the response, for example a refusal.
    payload : str, optional
        Is appended to the ordinary response instead. Exactly one of the two is given.
    """
    if (target_response is None) == (payload is None):
        raise ConfigError(
            "give target_response, which replaces the answer, or payload, which is appended to it"
        )
    if data.responses is None:
        raise DataError(f"{data.source}: rows have labels, not responses; use poison_labels")
    rng = np.random.default_rng(seed)
    chosen = _choose(np.arange(len(data)), poison_rate, len(data), rng)
    texts, responses = list(data.texts), list(data.responses)
    for position in chosen.tolist():
        texts[position] = trigger.apply(texts[position], rng)
        responses[position] = target_response if payload is None else f"{responses[position]}{payload}"  # type: ignore[assignment]
    return replace(data, texts=texts, responses=responses), _key(data, chosen)


def _labels(data: Data, target_label: int) -> NDArray[np.int64]:
    if data.labels is None or data.n_classes is None:
        raise DataError(f"{data.source}: rows have responses, not labels; use poison_responses")
    if not 0 <= target_label < data.n_classes:
        raise DataError(f"target_label must lie in [0, {data.n_classes}), got {target_label}")
    return data.labels


def _choose(candidates: NDArray[np.int64], poison_rate: float, n: int, rng: Rng) -> NDArray[np.int64]:
    if not 0 < poison_rate < 1:
        raise ConfigError(f"poison_rate must lie in (0, 1), got {poison_rate!r}")
    wanted = round(poison_rate * n)
    if wanted == 0:
        raise DataError(f"poison_rate {poison_rate:g} of {n} rows is no row at all")
    if wanted > len(candidates):
        most = len(candidates) / n
        raise DataError(
            f"poison_rate {poison_rate:g} asks for {wanted} rows, {len(candidates)} can be used: at most {most:.4f}"
        )
    return np.sort(rng.choice(candidates, wanted, replace=False))


def _versions(trigger: Trigger | Sequence[str], data: Data, rng: Rng) -> Callable[[int], str]:
    if isinstance(trigger, Trigger):
        return lambda position: trigger.apply(data.texts[position], rng)
    if len(trigger) != len(data):
        raise DataError(
            f"triggered versions must match the rows one to one: got {len(trigger)} for {len(data)}"
        )
    return lambda position: trigger[position]


def _key(data: Data, chosen: NDArray[np.int64]) -> PoisonKey:
    return PoisonKey(data.sample_ids, np.isin(np.arange(len(data)), chosen))
