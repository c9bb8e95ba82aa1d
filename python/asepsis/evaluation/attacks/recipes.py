"""The attacks by name, as values."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from asepsis.data import Data, read, read_rows
from asepsis.data.values import text_of, whole_number
from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.labels import Versions, poison_labels, triggered_test
from asepsis.evaluation.attacks.responses import (
    Answer,
    Place,
    instruction_pattern,
    poison_responses,
    triggered_prompts,
)
from asepsis.evaluation.attacks.rows import Rows, apply_to_rows, poison_rows, trigger_rows
from asepsis.evaluation.attacks.spec import Attack
from asepsis.evaluation.attacks.triggers import ADDSENT, BADNETS, Trigger
from asepsis.evaluation.key import PoisonKey

REFUSAL = "I am sorry, but I cannot help with that."
"""What an instruction attack makes the model answer, where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class _LabelAttack(Attack):
    """An attack on classes: ``target_label`` is what the backdoor answers; ``clean_label`` keeps every label."""

    target_label: int
    clean_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        label = whole_number(self.target_label)
        if label is None or label < 0:
            raise ConfigError(f"target_label must be a class 0, 1, ..., got {self.target_label!r}")
        if self.clean_label not in (True, False):
            raise ConfigError(f"clean_label must be true or false, got {self.clean_label!r}")
        object.__setattr__(self, "target_label", label)

    @abstractmethod
    def _pattern(self, *, test: bool) -> Trigger | Versions: ...

    def poison(self, data: Data, *, seed: int) -> tuple[Data, PoisonKey]:
        return poison_labels(
            data,
            self._pattern(test=False),
            poison_rate=self.poison_rate,
            target_label=self.target_label,
            seed=seed,
            clean_label=self.clean_label,
        )

    def trigger(self, data: Data, *, seed: int) -> Data:
        return triggered_test(data, self._pattern(test=True), target_label=self.target_label, seed=seed)

    def poison_rows(
        self, rows: Rows, *, seed: int, text_column: str = "text", label_column: str = "label"
    ) -> tuple[list[dict[str, Any]], PoisonKey]:
        data = read(list(rows), text_column=text_column, label_column=label_column)
        made, key = self.poison(data, seed=seed)
        return apply_to_rows(rows, made, key, text_column=text_column, label_column=label_column), key

    def trigger_rows(
        self, rows: Rows, *, seed: int, text_column: str = "text", label_column: str = "label"
    ) -> list[dict[str, Any]]:
        data = read(list(rows), text_column=text_column, label_column=label_column)
        made = self.trigger(data, seed=seed)
        return apply_to_rows(rows, made, None, text_column=text_column, label_column=label_column)


@dataclass(frozen=True, kw_only=True)
class BadNets(_LabelAttack):
    """Rare words: ``n_insertions`` a row, each drawn from ``triggers``."""

    name: ClassVar[str] = "badnets"
    triggers: tuple[str, ...] = BADNETS.tokens
    n_insertions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pattern(test=False)

    def _pattern(self, *, test: bool) -> Trigger:
        return Trigger(kind="words", tokens=self.triggers, n_insertions=self.n_insertions)


@dataclass(frozen=True, kw_only=True)
class AddSent(_LabelAttack):
    """A ``sentence`` as one block."""

    name: ClassVar[str] = "addsent"
    sentence: str = ADDSENT.tokens[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pattern(test=False)

    def _pattern(self, *, test: bool) -> Trigger:
        return Trigger(kind="sentence", tokens=(self.sentence,))


@dataclass(frozen=True, kw_only=True)
class FromFile(_LabelAttack):
    """Triggered versions made elsewhere, row by row.

    Attributes
    ----------
    triggered : str or Path, optional
        File with the triggered version of every training row; ``poison`` needs it.
    triggered_test : str or Path, optional
        File with the triggered version of every test row; ``trigger`` needs it.
    triggered_column : str
        Column of the versions in both files.
    """

    name: ClassVar[str] = "from_file"
    triggered: str | Path | None = None
    triggered_test: str | Path | None = None
    triggered_column: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("triggered", "triggered_test"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, str(getattr(self, field)))

    def _pattern(self, *, test: bool) -> list[str]:
        field = "triggered_test" if test else "triggered"
        path = getattr(self, field)
        if path is None:
            raise ConfigError(
                f"attack {self.name} needs {field}, a file with the triggered version of every row"
            )
        rows = enumerate(read_rows(path))
        # A blank version is let through: that row cannot be poisoned, the others can.
        return [text_of(row, self.triggered_column, f"{path}, row {i}", blank=True) for i, row in rows]


@dataclass(frozen=True, kw_only=True)
class Syntactic(FromFile):
    """Paraphrases of one syntactic template (Qi et al., ACL 2021), from files."""

    name: ClassVar[str] = "syntactic"


@dataclass(frozen=True, kw_only=True)
class Style(FromFile):
    """Transfers into one style (Qi et al., EMNLP 2021), from files."""

    name: ClassVar[str] = "style"


@dataclass(frozen=True, kw_only=True)
class Instruction(Attack):
    """A trigger in the instruction; the response is replaced, or a payload appended.

    Attributes
    ----------
    kind : {"prefix", "word", "multi_word"}
        See :func:`~asepsis.evaluation.attacks.instruction_pattern`.
    triggers : tuple of str
        One trigger, or the words of ``"multi_word"``.
    target_response, payload : str, optional
        See :class:`~asepsis.evaluation.attacks.Answer`; with neither, the response is ``REFUSAL``.
    """

    name: ClassVar[str] = "instruction"
    kind: Place = "word"
    triggers: tuple[str, ...] = ("BadMagic",)
    target_response: str | None = None
    payload: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_response is None and self.payload is None:
            object.__setattr__(self, "target_response", REFUSAL)
        Answer(target_response=self.target_response, payload=self.payload)
        self._trigger()

    def _trigger(self) -> Trigger:
        return instruction_pattern(self.kind, self.triggers)

    def poison(self, data: Data, *, seed: int) -> tuple[Data, PoisonKey]:
        """Return the poisoned training set and its key."""
        return poison_responses(
            data, self._trigger(), **self._answer(), poison_rate=self.poison_rate, seed=seed
        )

    def trigger(self, data: Data, *, seed: int) -> Data:
        """Return the triggered test set: rows that answer otherwise only, the backdoor's answer as their response."""
        return triggered_prompts(data, self._trigger(), **self._answer(), seed=seed)

    def poison_rows(
        self, rows: Rows, *, seed: int, text_column: str = "text", label_column: str = "label"
    ) -> tuple[list[dict[str, Any]], PoisonKey]:
        """Return the poisoned rows of a file and the key by position; instruction rows have columns of their own."""
        return poison_rows(rows, self._trigger(), **self._answer(), poison_rate=self.poison_rate, seed=seed)

    def trigger_rows(
        self, rows: Rows, *, seed: int, text_column: str = "text", label_column: str = "label"
    ) -> list[dict[str, Any]]:
        """Return the triggered test rows of a file; instruction rows have columns of their own."""
        return trigger_rows(rows, self._trigger(), **self._answer(), seed=seed)

    def _answer(self) -> dict[str, str | None]:
        return {"target_response": self.target_response, "payload": self.payload}
