"""What a defense is: a paper, a threat, a config and a script.

Why a script that yields
------------------------
Every defense trains, some twice, some a second model. If a defense called a trainer, imports would point up; if the
trainer called hooks on the defense, the paper's algorithm would be spread over callbacks and nobody could read it
from top to bottom. So a defense is a generator in its paper's order: it yields a request (train like this, score
every row) and is sent the answer. A driver in ``asepsis.training`` carries requests out, once for all defenses.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from asepsis.core.phases import Ids, Script
from asepsis.core.weights import Checkpoint
from asepsis.data import Data
from asepsis.errors import ConfigError


class Threat(Enum):
    """What the attacker touched."""

    DATA = "poisoned data"
    WEIGHTS = "poisoned weights"


@dataclass(frozen=True)
class Paper:
    """The published source of a defense."""

    title: str
    authors: str
    venue: str
    year: int
    arxiv: str

    @property
    def url(self) -> str:
        """Where the paper can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """Base of all configs: frozen, keyword-only, checked when built, saved as JSON; unknown fields raise.

    Types are checked from the annotations (``int``, ``float``, ``bool``, ``str``, literals, unions of them and
    tuples), so a subclass only checks bounds in its own ``__post_init__`` after calling this one.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, hints[field.name]):
                raise ConfigError(f"{type(self).__name__}.{field.name} must be {field.type}, got {value!r}")

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """Build from a mapping; an unknown field raises :class:`ConfigError` and lists the known ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no field {', '.join(unknown)}; it has: {', '.join(sorted(known))}"
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @staticmethod
    def parse_strings(pairs: dict[str, str]) -> dict[str, Any]:
        """Read command-line text: each value as JSON where it is JSON, as a word otherwise."""
        return {key: _parse(text) for key, text in pairs.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_dict` takes back."""
        return dataclasses.asdict(self)


ConfigT = TypeVar("ConfigT", bound=DefenseConfig)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user handed over beside model and data: keywords of :func:`asepsis.defend` and :func:`asepsis.purify`.

    Attributes
    ----------
    clean_reference : Data, "auto" or None
        Trusted rows beside untrusted ones. ``"auto"`` asks the defense to find rows it may take for clean, where it can.
    base : Checkpoint or None
        The model that a tuned one came from.
    clean : Data or None
        Trusted rows to repair a model with.
    counts : path, mapping or None
        How often each token is expected, see :class:`asepsis.core.weights.Frequencies`.
    corpus : sequence of str or None
        Trusted text to count tokens in.
    """

    clean_reference: Data | Literal["auto"] | None = None
    base: Checkpoint | None = None
    clean: Data | None = None
    counts: str | Path | Mapping[Any, float] | None = None
    corpus: Sequence[str] | None = None


class Defense(ABC, Generic[ConfigT]):
    """One published defense: of a training on untrusted data (``script``), or of untrusted weights (``repair``).

    Attributes
    ----------
    paper : Paper
    threat : Threat
    needs : frozenset of str
        Inputs beside model and data, by the keyword of :func:`asepsis.defend` or :func:`asepsis.purify`, for example
        ``"clean_reference"``.
    config_type : type
        Its config class.
    cost : str
        What it takes beyond plain training or plain inference, in a line, for :meth:`asepsis.Pipeline.explain`.
    """

    paper: ClassVar[Paper]
    threat: ClassVar[Threat]
    needs: ClassVar[frozenset[str]]
    config_type: ClassVar[type[DefenseConfig]]
    cost: ClassVar[str]

    def __init__(self, config: ConfigT, given: Given | None = None) -> None:
        self.config = config
        self.given = Given() if given is None else given

    @property
    def name(self) -> str:
        """What :func:`asepsis.defenses.load` finds it by."""
        return type(self).__module__.rpartition(".")[2]

    def script(self, model: Any, data: Data) -> Script:
        """Defend a training: the paper's steps as requests, ending in an Outcome."""
        raise ConfigError(
            f"{self.name} repairs a finished model and trains on no untrusted data; use asepsis.purify(model, base=..., "
            f"defense={self.name!r}), or asepsis purify on the command line"
        )

    def repair(self, victim: Checkpoint, rows: Data | None) -> Script:
        """Repair a finished model: the paper's steps as requests, ending in an Outcome.

        Parameters
        ----------
        victim : Checkpoint
            The model as it is handed over; where it stands before the first request.
        rows : Data or None
            The clean rows, which requests name by id. Without them nothing can be trained or scored.
        """
        raise ConfigError(
            f"{self.name} acts while a model is trained on untrusted data, not on a finished model; use "
            f"asepsis.defend(model, data, defense={self.name!r}), or asepsis train on the command line"
        )

    def scan(self, model: Any, data: Data, trusted: Ids) -> Script:
        """Only judge the rows, if the defense can: the same requests up to the verdict.

        ``trusted`` rows are scored, to calibrate a threshold on, but neither trained on nor suspected.
        """
        raise ConfigError(f"{self.name} cannot scan data: it judges no rows")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(a) and value == a for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint if isinstance(hint, type) else type(None))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
