"""What a grid declares, and the cells that follow from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from posixpath import normpath
from typing import Any, get_args

from asepsis.core.documents import read_yaml
from asepsis.core.foreign import first_line
from asepsis.data.dataset import Task
from asepsis.data.values import listed, shown
from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.spec import ATTACKS
from asepsis.evaluation.attacks.weights import WEIGHT_ATTACKS
from asepsis.evaluation.grid.entries import Entry, entry_of
from asepsis.evaluation.grid.sources import attack_of, weight_attack_of
from asepsis.training.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_FILES = ("train", "dev", "test")
_FEWER = ("clean_rows", "test_rows")  # what a row of the table may have fewer of
# what decides every cell of a grid
_DECIDES = ("model", "task", "data", "target_label", "rows", "clean_rows", "test_rows", "settings")


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
    task : {"classification", "causal"}
        What the rows are. A causal grid has instruction rows; its cells have the loss on clean responses in place of CACC,
        and ASR is the share of triggered prompts that greedy decoding answers with the backdoor's first tokens.
    attacks : mapping
        By name: ``{attack: NAME, poison_rate: ..., ...}`` with the fields of that attack; ``{train: FILE, triggered:
        FILE}`` for a poisoned set made elsewhere, with its key in the column ``poisoned``; ``{poison: FILE, triggered:
        FILE, poison_rate: ...}`` for poisoned instructions made elsewhere, which take the place of that share of the
        training rows and have one response; ``{weights: NAME, ...}`` with the fields of an attack on weights, where ``none``
        is the victim and only what works on a model as it came has a cell; or ``{}`` for no poison, the control for
        false alarms.
    defenses : mapping
        By name: ``kind`` and the fields of its config, see :mod:`asepsis.evaluation.grid.entries`. One that is slow may have
        fewer rows than the grid: ``clean_rows`` drawn, and of either test file the first ``test_rows``.
    target_label : int
        What the backdoors of classes answer.
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
    task: Task = "classification"
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
        if self.task not in get_args(Task):
            raise ConfigError(f"task must be one of {listed(get_args(Task))}, got {self.task!r}")
        if self.task == "causal" and self.data == "packaged":
            raise ConfigError(
                "the packaged reviews have labels: a causal grid names files of instruction rows"
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
        files = {} if isinstance(self.data, str) else self.data
        learned, tests = [files.get("train"), files.get("dev")], [files.get("test")]
        _check_apart("data", learned, tests)
        for name, entry in self.attacks.items():
            _check_attack(name, entry, self.task)
            poison = [entry.get("train"), entry.get("poison")]
            _check_apart(f"attacks: {name}", [*learned, *poison], [*tests, entry.get("triggered")])
            checks = {"attack": attack_of, "weights": weight_attack_of}
            for read in (checks[key] for key in checks if key in entry):
                try:
                    read(self, entry)
                except (TypeError, AttributeError) as error:
                    raise ConfigError(f"attacks: {name}: {first_line(error)}") from error
        for name in self.defenses:
            try:
                self.entry(name)
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
        for name in self.defenses:
            _check_fewer(self, name)
        if not isinstance(self.settings, Mapping):
            raise ConfigError(f"settings must be a mapping, got {shown(self.settings)}")
        if "seed" in self.settings:
            raise ConfigError("settings: the seed is the grid's, say seeds")
        self.settings_of(seeds[0])

    def entry(self, name: str) -> Entry:
        """Return what a row of the table does."""
        entry = self.defenses[name]
        return entry_of(name, {key: value for key, value in entry.items() if key not in _FEWER})

    def declared(self, cell: Cell) -> dict[str, Any]:
        """Return all that decides a cell but its seed, JSON-ready: a cell repeats it, and one of another grid shows."""
        whole = {name: getattr(self, name) for name in _DECIDES}
        entry = {"kind": cell.defense, **self.defenses.get(cell.defense, {})}
        told: dict[str, Any] = json.loads(
            json.dumps({**whole, "attack": self.attacks[cell.attack], "defense": entry}, default=dict)
        )
        return told

    def fewer(self, name: str) -> dict[str, int]:
        """Return of which rows an entry has fewer than the grid, and how many."""
        entry = self.defenses[name]
        return {key: entry[key] for key in _FEWER if key in entry}

    def clean_rows_of(self, name: str) -> int:
        """Return how many trusted rows an entry has."""
        return self.fewer(name).get("clean_rows", self.clean_rows)

    def test_rows_of(self, name: str) -> int:
        """Return on how many rows of either test file an entry is measured, 0 for all."""
        return self.fewer(name).get("test_rows", self.test_rows)

    def settings_of(self, seed: int) -> Settings:
        """Return the settings of a training."""
        try:
            return Settings(**self.settings, seed=seed)
        except TypeError as error:
            raise ConfigError(f"settings: {error}") from None

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, the controls of an attack and seed before what leans on them."""
        for seed, attack in product(self.seeds, self.attacks):
            for defense in self.rows_of(attack):
                yield Cell(attack, defense, seed)

    def rows_of(self, attack: str) -> list[str]:
        """Return the defenses of an attack's table: all, but where weights are poisoned what trains anew has nothing to defend."""
        if "weights" not in self.attacks[attack]:
            return list(self.defenses)
        return [name for name in self.defenses if self.entry(name).meets_victims]


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


def _check_fewer(grid: Grid, name: str) -> None:
    for key, value in grid.fewer(name).items():
        most = getattr(grid, key) or 2**31 - 1  # test_rows: 0 is all
        if type(value) is not int or not 1 <= value <= most:
            raise ConfigError(f"defenses: {name}: {key} must lie in 1..{most}, got {shown(value)}")


def _check_attack(name: str, entry: Mapping[str, Any], task: Task) -> None:
    if not entry or (_names(entry, "train", "triggered") and task == "classification"):
        return
    files = {key: value for key, value in entry.items() if key != "poison_rate"}
    if task == "causal" and "poison_rate" in entry and _names(files, "poison", "triggered"):
        rate = entry["poison_rate"]
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
            raise ConfigError(f"attacks: {name}: poison_rate must lie in (0, 1), got {shown(rate)}")
        return
    if "weights" in entry:
        if not isinstance(entry["weights"], str) or entry["weights"] not in WEIGHT_ATTACKS:
            raise ConfigError(
                f"attacks: {name}: weights must name one of {listed(sorted(WEIGHT_ATTACKS))}, got {shown(entry['weights'])}"
            )
        return
    if not isinstance(entry.get("attack"), str) or entry["attack"] not in ATTACKS:
        wanted = (
            "train and triggered" if task == "classification" else "poison and triggered and a poison_rate"
        )
        raise ConfigError(
            f"attacks: {name} must be empty, name the files {wanted}, or an attack: one of {listed(ATTACKS)}"
        )
    if (entry["attack"] == "instruction") != (task == "causal"):
        raise ConfigError(f"attacks: {name}: {entry['attack']} is no attack on {task} rows")
    if entry.get("payload") is not None:
        raise ConfigError(f"attacks: {name}: a grid measures one response; give target_response, no payload")


def _check_apart(where: str, seen: Iterable[Any], tests: Iterable[Any]) -> None:
    """A file that is trained on or chosen by is no test file."""
    learned = {normpath(file) for file in seen if isinstance(file, str)}
    for test in tests:
        if isinstance(test, str) and normpath(test) in learned:
            raise ConfigError(f"{where}: {shown(test)} is a test file, and rows of it would be trained on")


def _names(value: Any, *fields: str) -> bool:
    """Whether a mapping names a file for each of these and for nothing else."""
    return (
        isinstance(value, Mapping)
        and set(value) == set(fields)
        and all(isinstance(name, str) and name for name in value.values())
    )
