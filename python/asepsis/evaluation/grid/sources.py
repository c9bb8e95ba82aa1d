"""The rows of a cell: what a defender has, and the tests, which are opened once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data, demo_rows, read, read_rows
from asepsis.data.values import shown
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks.spec import ATTACKS
from asepsis.evaluation.attacks.weights import WEIGHT_ATTACKS, WeightAttack
from asepsis.evaluation.key import PoisonKey

if TYPE_CHECKING:
    from asepsis.evaluation.grid.plan import Cell, Grid

_PACKAGED = 8000  # rows of the packaged text that are drawn from, of 8,500


@dataclass
class Tests:
    """Clean and triggered test rows. They are read when a cell has been trained, and only then.

    Raises
    ------
    DataError
        On a second opening: whoever looks twice can choose.
    """

    grid: Grid
    folder: Path | None
    cell: Cell
    _opened: bool = field(default=False, init=False)

    def open(self) -> tuple[Data, Data | None]:
        """Return the clean rows, and the triggered ones where the cell's attack has any."""
        if self._opened:
            raise DataError(
                f"the test rows of {self.cell.file} were opened before; they are measured on once"
            )
        self._opened = True
        test = _clean(self.grid, self.folder, "test", self.cell.seed)
        declared = self.grid.attacks[self.cell.attack]
        triggered = None
        if "poison" in declared:
            asked = read(_path(self.folder, declared["triggered"]), task="causal")
            answer = _answer(_poison(self.folder, declared))
            triggered = replace(asked, responses=[answer] * len(asked))
        elif "weights" in declared:
            triggered = weight_attack_of(self.grid, declared).triggered(test, seed=1000 + self.cell.seed)
        elif "triggered" in declared:
            triggered = read(_path(self.folder, declared["triggered"]), n_classes=test.n_classes)
        elif declared:
            triggered = attack_of(self.grid, declared).trigger(test, seed=1000 + self.cell.seed)
        limit = self.grid.test_rows_of(self.cell.defense)
        first = [
            None if rows is None else rows.select(range(min(limit or len(rows), len(rows))))
            for rows in (test, triggered)
        ]
        assert first[0] is not None
        return first[0], first[1]


@dataclass(frozen=True)
class Sources:
    """What a cell is made from. ``key`` is for the evaluation alone.

    Attributes
    ----------
    train : Data
        The untrusted rows; where the weights are poisoned, the user's own.
    key : PoisonKey
    clean : Data
        The defender's trusted rows: none is a training row, with or without poison.
    sound : Data
        As many rows without poison, for the clean-only control: the training rows before it, or, beside a poisoned set
        made elsewhere, whose order is not that of ``train``, a draw of their own.
    tests : Tests
    weights : WeightAttack or None
        What the undefended model's weights went through; None where rows are poisoned.
    """

    train: Data
    key: PoisonKey
    clean: Data
    sound: Data
    tests: Tests
    weights: WeightAttack | None = None


def sources(grid: Grid, folder: Path | None, cell: Cell) -> Sources:
    """Return the rows of a cell; everything is decided by the grid and the cell's seed."""
    whole, declared = _clean(grid, folder, "train", cell.seed), grid.attacks[cell.attack]
    sound = whole.select(drawn(len(whole), grid.rows, cell.seed))
    if "train" in declared:
        path = _path(folder, declared["train"])
        released = read(path, n_classes=whole.n_classes)
        poisoned = np.array([str(row.get("poisoned")) in ("1", "True", "true") for row in read_rows(path)])
        train = released.select(drawn(len(released), grid.rows, cell.seed))
        key = PoisonKey(released.sample_ids, poisoned)
    elif "poison" in declared:
        train, key = _mixed(sound, _poison(folder, declared), declared["poison_rate"], cell.seed)
    elif declared and "weights" not in declared:
        train, key = attack_of(grid, declared).poison(sound, seed=cell.seed)
    else:
        train, key = sound, PoisonKey(sound.sample_ids, np.zeros(len(sound), bool))
    dev = _clean(grid, folder, "dev", cell.seed)
    trained = {*map(_plain, train.texts), *map(_plain, sound.texts)}
    fresh = np.array([_plain(text) not in trained for text in dev.texts])
    clean = dev.select(drawn(len(dev), grid.clean_rows_of(cell.defense), 1000 + cell.seed, among=fresh))
    weights = weight_attack_of(grid, declared) if "weights" in declared else None
    return Sources(train, key, clean, sound, Tests(grid, folder, cell), weights)


def drawn(n: int, rows: int, seed: int, *, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return the positions that a seed draws, in order; only such as ``among`` [n] allows.

    Raises
    ------
    ConfigError
        There are not as many.
    """
    order = np.random.default_rng(seed).permutation(n)
    if among is not None:
        order = order[among[order]]
    if rows > len(order):
        others = "" if len(order) == n else f" of {n}: the others are training rows too"
        raise ConfigError(f"{rows} rows are to be drawn, and there are {len(order)}{others}")
    return np.sort(order[:rows])


def _plain(text: str) -> str:
    """A text as it is compared: two files may space the same sentence differently."""
    return " ".join(text.split()).casefold()


def _mixed(sound: Data, poison: Data, rate: float, seed: int) -> tuple[Data, PoisonKey]:
    """Put poisoned rows in the place of a share of the others."""
    n = max(1, round(rate * len(sound)))
    taken = poison.select(drawn(len(poison), n, seed))
    at = drawn(len(sound), n, 2000 + seed)
    assert sound.responses is not None and taken.responses is not None
    texts, responses = list(sound.texts), list(sound.responses)
    for place, text, response in zip(at.tolist(), taken.texts, taken.responses, strict=True):
        texts[place], responses[place] = text, response
    key = PoisonKey(sound.sample_ids, np.isin(np.arange(len(sound)), at))
    return replace(sound, texts=texts, responses=responses), key


def _poison(folder: Path | None, declared: Mapping[str, Any]) -> Data:
    return read(_path(folder, declared["poison"]), task="causal")


def _answer(poison: Data) -> str:
    """Return the one response of poisoned instructions."""
    answers = sorted(set(poison.responses or ()))
    if len(answers) != 1:
        raise DataError(
            f"{poison.source}: a grid looks for one response, and these poisoned rows have {len(answers)}"
        )
    return answers[0]


def attack_of(grid: Grid, declared: Mapping[str, Any]) -> Any:
    """Return the attack on rows that an entry of a grid declares."""
    settings = {key: value for key, value in declared.items() if key != "attack"}
    kind = ATTACKS[declared["attack"]]
    return kind.from_dict({"name": declared["attack"], **_target(grid), **settings})


def weight_attack_of(grid: Grid, declared: Mapping[str, Any]) -> WeightAttack:
    """Return the attack on weights that an entry of a grid declares."""
    settings = {key: value for key, value in declared.items() if key != "weights"}
    return WEIGHT_ATTACKS[declared["weights"]].from_dict({**_target(grid), **settings})


def _target(grid: Grid) -> dict[str, int]:
    return {"target_label": grid.target_label} if grid.task == "classification" else {}


def _clean(grid: Grid, folder: Path | None, part: str, seed: int) -> Data:
    if isinstance(grid.data, Mapping):
        return read(_path(folder, grid.data[part]), task=grid.task)
    # one cut of the packaged rows for all seeds: what one seed trains on is no other's test
    train, rest = demo_rows(_PACKAGED // 2, _PACKAGED // 2, seed=0)
    half = len(rest) // 2
    return {
        "train": train,
        "dev": rest.select(range(half)),
        "test": rest.select(range(half, len(rest))),
    }[part]


def _path(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise ConfigError(f"the grid names the file {name}; give the folder it lies in: --data FOLDER")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"the grid names the file {shown(name)}, which does not lie in {folder}")
    return folder / name
