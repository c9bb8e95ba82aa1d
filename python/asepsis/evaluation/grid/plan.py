"""What a grid declares, and the cells that follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from asepsis.core.documents import read_yaml
from asepsis.core.foreign import first_line
from asepsis.data.values import listed, shown
from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.spec import ATTACKS
from asepsis.evaluation.grid.entries import check_entry
from asepsis.evaluation.grid.sources import attack_of
from asepsis.training.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_FILES = ("train", "dev", "test")


@dataclass(frozen=True)
class Cell:
    """One number pair of the table: this defense, against this attack, with this seed."""

    attack: str
    defense: str
    seed: int

    @property
    def file(self) -> str:
        """The name of its JSON file."""
        return f"{self.defense}--{self.attack}--seed{self.seed}.json"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A declared grid.

    Attributes
    ----------
    model : str
        Where every training starts; the base of what repairs weights.
    data : mapping or "packaged"
        Files of the clean ``train``, ``dev`` and ``test`` rows below the data folder, or the packaged reviews.
    attacks : mapping
        By name: ``{attack: NAME, poison_rate: ..., ...}`` with the fields of that attack; ``{train: FILE, triggered:
        FILE}`` for a poisoned set made elsewhere, with its key in the column ``poisoned``; or ``{}`` for no poison, the
        control for false alarms.
    defenses : mapping
        By name: ``kind`` and the fields of its config, see :mod:`asepsis.evaluation.grid.entries`.
    target_label : int
        What the backdoors answer.
    seeds : tuple of int
        Each draws its rows, its poison and its trusted rows, and seeds its trainings.
    rows, clean_rows, test_rows : int
        Training rows drawn, the defender's trusted rows drawn from ``dev``, and rows measured on (0 for all).
    settings : mapping
        Of every training, as fields of :class:`~asepsis.Settings`; ``seed`` is the grid's.
    """

    model: str
    data: Mapping[str, str] | str
    attacks: Mapping[str, Mapping[str, Any]]
    defenses: Mapping[str, Mapping[str, Any]]
    target_label: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 3000
    clean_rows: int = 436
    test_rows: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(f"model must be a folder or an id, got {shown(self.model)}")
        if self.data != "packaged" and not _names(self.data, *_FILES):
            raise ConfigError(
                f'data must be "packaged" or name the files {listed(_FILES)}, got {shown(self.data)}'
            )
        for what, entries in (("attacks", self.attacks), ("defenses", self.defenses)):
            if not isinstance(entries, Mapping) or not entries:
                raise ConfigError(f"{what} must name at least one entry, got {shown(entries)}")
            for name, entry in entries.items():
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    raise ConfigError(
                        f"{what}: {shown(name)} is no name: small letters, digits, '.', '+' and '-'"
                    )
                if not isinstance(entry, Mapping):
                    raise ConfigError(f"{what}: {name} must be a mapping, got {shown(entry)}")
        for name, entry in self.attacks.items():
            _check_attack(name, entry)
            if "attack" in entry:
                try:
                    attack_of(self, entry)
                except (TypeError, AttributeError) as error:
                    raise ConfigError(f"attacks: {name}: {first_line(error)}") from error
        for name, entry in self.defenses.items():
            try:
                check_entry(name, entry)
            except (TypeError, AttributeError) as error:
                raise ConfigError(f"defenses: {name}: {first_line(error)}") from error
        seeds = tuple(self.seeds) if isinstance(self.seeds, (list, tuple)) else ()
        if (
            not seeds
            or any(type(s) is not int or not 0 <= s < 2**31 for s in seeds)
            or len({*seeds}) < len(seeds)
        ):
            raise ConfigError(f"seeds must be a list of different numbers from 0, got {shown(self.seeds)}")
        object.__setattr__(self, "seeds", seeds)
        for name, least in (("rows", 1), ("clean_rows", 1), ("test_rows", 0), ("target_label", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**31:
                raise ConfigError(f"{name} must be a whole number from {least}, got {shown(value)}")
        if not isinstance(self.settings, Mapping):
            raise ConfigError(f"settings must be a mapping, got {shown(self.settings)}")
        if "seed" in self.settings:
            raise ConfigError("settings: the seed is the grid's, say seeds")
        self.settings_of(seeds[0])

    def settings_of(self, seed: int) -> Settings:
        """Return the settings of a training."""
        try:
            return Settings(**self.settings, seed=seed)
        except TypeError as error:
            raise ConfigError(f"settings: {error}") from None

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, the controls of an attack and seed before what leans on them."""
        for seed, attack, defense in product(self.seeds, self.attacks, self.defenses):
            yield Cell(attack, defense, seed)


def read_grid(values: Mapping[str, Any] | str | Path) -> Grid:
    """Return the grid that a mapping or a YAML file declares.

    Raises
    ------
    ConfigError
        The file cannot be read, or a field is unknown, missing or wrong.
    """
    if not isinstance(values, Mapping):
        try:
            values = read_yaml(Path(values))
        except (OSError, ValueError) as error:
            raise ConfigError(f"the grid cannot be read: {first_line(error)}") from error
        if not isinstance(values, Mapping):
            raise ConfigError(f"a grid is a mapping of fields, got {type(values).__name__}")
    known = [f.name for f in fields(Grid)]
    if unknown := [str(name) for name in values if name not in known]:
        raise ConfigError(f"a grid has no field {listed(unknown)}; its fields are {listed(known)}")
    if missing := [name for name in ("model", "data", "attacks", "defenses") if name not in values]:
        raise ConfigError(f"a grid needs {listed(missing)}")
    return Grid(**values)


def _check_attack(name: str, entry: Mapping[str, Any]) -> None:
    if not entry or _names(entry, "train", "triggered"):
        return
    if not isinstance(entry.get("attack"), str) or entry["attack"] not in ATTACKS:
        raise ConfigError(
            f"attacks: {name} must be empty, name the files train and triggered, or an attack: one of {listed(ATTACKS)}"
        )


def _names(value: Any, *fields: str) -> bool:
    """Whether a mapping names a file for each of these and for nothing else."""
    return (
        isinstance(value, Mapping)
        and set(value) == set(fields)
        and all(isinstance(name, str) and name for name in value.values())
    )
