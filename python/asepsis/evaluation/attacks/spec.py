"""An attack as a value: its settings, frozen and JSON-ready, and one way to use every one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from asepsis.data import Data
from asepsis.data.values import listed
from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.choice import check_rate
from asepsis.evaluation.attacks.rows import Rows
from asepsis.evaluation.key import PoisonKey

ATTACKS: dict[str, type[Attack]] = {}
"""Every attack by its name; a subclass of :class:`Attack` that has a name enters when it is defined."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Settings of one attack. ``ATTACKS`` names them all.

    Attributes
    ----------
    poison_rate : float
        Share of the training rows that are poisoned, in (0, 1).
    """

    name: ClassVar[str]
    poison_rate: float = 0.1

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            ATTACKS[cls.name] = cls

    def __post_init__(self) -> None:
        check_rate(self.poison_rate)

    @abstractmethod
    def poison(self, data: Data, *, seed: int) -> tuple[Data, PoisonKey]:
        """Return the poisoned training set and its key."""

    @abstractmethod
    def trigger(self, data: Data, *, seed: int) -> Data:
        """Return the triggered test set: non-target rows only, the target as their answer."""

    @abstractmethod
    def poison_rows(
        self, rows: Rows, *, seed: int, text_column: str = "text", label_column: str = "label"
    ) -> tuple[list[dict[str, Any]], PoisonKey]:
        """Return the poisoned rows of a file, columns kept, and the key by position."""

    @abstractmethod
    def trigger_rows(
        self, rows: Rows, *, seed: int, text_column: str = "text", label_column: str = "label"
    ) -> list[dict[str, Any]]:
        """Return the triggered test rows of a file, columns kept."""

    def to_dict(self) -> dict[str, Any]:
        """Return name and settings, JSON-ready."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Attack:
        """Return what :meth:`to_dict` was called on. Unknown or missing fields raise ``ConfigError``."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        name = given.pop("name", None)
        if name not in ATTACKS:
            raise ConfigError(f"no attack {name!r}; there are {listed(ATTACKS)}")
        known = {field.name: field for field in fields(ATTACKS[name])}
        unknown = [field for field in given if field not in known]
        missing = [k for k, field in known.items() if field.default is MISSING and k not in given]
        if unknown or missing:
            raise ConfigError(
                f"attack {name}: "
                + (
                    f"no field {listed(unknown)}; fields are {listed(known)}"
                    if unknown
                    else f"needs {listed(missing)}"
                )
            )
        return ATTACKS[name](**given)
