"""Grids of a comparison that unfold, reach out or are none, and cells that hold no measurement. Made from a sound grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asepsis.evaluation.grid import Cell, read_grid
from hostile import Corpus

GRIDS = Corpus("grids")
CELLS = Corpus("cells")
FILE, CELL = "grid.yaml", "cells/none--clean--seed0.json"

SOUND = {"model": "m", "data": "packaged", "attacks": {"clean": {}}, "defenses": {"none": {}}, "seeds": [0]}
SOUND_CELL = {
    "attack": "clean",
    "defense": "none",
    "seed": 0,
    "declared": read_grid(SOUND).declared(Cell("clean", "none", 0)),
    "clean_accuracy": {"value": 0.9, "low": 0.8, "high": 1.0},
    "attack_success_rate": None,
    "detection": None,
    "seconds": 1.0,
    "peak_bytes": 1,
}


def sound(folder: Path) -> None:
    """Write a grid and the one cell of it."""
    (folder / "cells").mkdir(parents=True)
    (folder / FILE).write_text(json.dumps(SOUND))  # JSON is YAML
    (folder / CELL).write_text(json.dumps(SOUND_CELL))


def raw(name: str, content: str | bytes, says: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    GRIDS.add(name, says)(lambda folder: (folder / FILE).write_bytes(data) and None)


def field(name: str, says: str, **values: Any) -> None:
    raw(name, json.dumps({**SOUND, **values}), says)


_PLAIN = "model: m\ndata: packaged\nattacks: {clean: {}}\ndefenses: {none: {}}\n"
_UNREAD = "cannot be read"
_LAUGHS = "[&a0 [x,x,x,x,x,x,x,x,x,x]" + "".join(
    f",&a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)
)
for place in ("model", "data", "seeds", "rows", "settings", "nosuch"):
    raw(
        f"a billion laughs in {place}",
        "".join(line + "\n" for line in _PLAIN.splitlines() if not line.startswith(place))
        + f"{place}: {_LAUGHS}]\n",
        "alias",
    )
raw("a grid that holds itself", _PLAIN + "settings: &s {a: *s}\n", "alias")
raw("a grid nested without end", _PLAIN + "settings: " + "[" * 20_000, "deep")
raw(
    "a grid that builds an object",
    _PLAIN + "settings: !!python/object/apply:os.mkdir [code-was-run]\n",
    _UNREAD,
)
raw("a grid that imports", _PLAIN + "settings: !!python/module:code-was-run ''\n", _UNREAD)
raw("a grid that says two things", _PLAIN + "model: n\n", "twice")
raw("a grid of 300 KB", _PLAIN + "#" * 300_000, "more than")
raw("a grid that is not UTF-8", b"\xff\xfe\x00", _UNREAD)
raw("a grid with a NUL", "model: \0", _UNREAD)
raw("a grid that is a list", "[]", "a mapping of fields")
raw("a grid of nothing", "", "a mapping of fields")
raw("a day that there is not", _PLAIN + "seeds: [2001-99-99]\n", _UNREAD)
raw("a number of 5,000 digits in a grid", _PLAIN + "seeds: [" + "9" * 5000 + "]\n", _UNREAD)
field("a field that steers a terminal", r"no field '\\x1b", **{"\x1b[2J": 1})
field("an attack named after a folder", "is no name", attacks={"../../x": {}})
field("a defense named after a folder", "is no name", defenses={"../../x": {}})
field("an attack by a list", "or an attack: one of", attacks={"clean": {"attack": ["x"]}})
field(
    "an attack with a rate that is text",
    "poison_rate|attacks",
    attacks={"b": {"attack": "badnets", "poison_rate": "x"}},
)
field("a defense by a list", "no kind", defenses={"none": {"kind": ["x"]}})
field("a defense by a module", "no kind", defenses={"none": {"kind": "os.path"}})
field(
    "two defenses whose settings are a number",
    "defenses: x",
    defenses={"x": {"kind": "epur+finemixing", "epur": 3}},
)
field("a starting model that is a list", "model must be", model=["a"])
field("files that are numbers", "data must", data={"train": 1, "dev": 2, "test": 3})
field("seeds that are a number", "seeds must", seeds=3)
field("seeds that are objects", "seeds must", seeds=[{"a": 1}])
field("a seed of 10**30", "seeds must", seeds=[10**30])
field("10**30 rows", "rows must", rows=10**30)
field("settings of a training that are a list", "settings must", settings=["a"])
field("settings of a training that are text", "settings", settings={"epochs": "x"})


def cell(name: str, content: Any, says: str = "is no cell|cannot be read") -> None:
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    CELLS.add(name, says)(lambda folder: (folder / CELL).write_bytes(data) and None)


cell("a cell that is no JSON", "{")
cell("a cell that is a list", [])
cell("a cell of nothing", {})
cell("a cell nested without end", "[" * 10**5)
cell("a cell that says two things", '{"error": "a", "error": "b"}', "twice")
cell("a cell whose error is an object", {"error": {"a": 1}})
cell("a cell whose share is text", {**SOUND_CELL, "clean_accuracy": {"value": "0.9"}})
cell("a cell whose share is no object", {**SOUND_CELL, "clean_accuracy": 0.9})
cell("a cell whose share is NaN", {**SOUND_CELL, "clean_accuracy": {"value": float("nan")}})
cell("a cell whose share is infinite", {**SOUND_CELL, "attack_success_rate": {"value": float("inf")}})
cell("a cell whose detection is a list", {**SOUND_CELL, "detection": [1]})
cell("a cell whose detection is text", {**SOUND_CELL, "detection": {"auroc": "1"}})
cell("a cell whose seconds are text", {**SOUND_CELL, "seconds": "1"})
_DECLARED = SOUND_CELL["declared"]
cell("a cell without settings", {**SOUND_CELL, "declared": None}, "does not say")
cell("a cell whose settings are a list", {**SOUND_CELL, "declared": [_DECLARED]}, "does not say")
_OTHER = {"kind": "\x1b[2J\n" * 10**5}
cell("a cell of other settings", {**SOUND_CELL, "declared": {**_DECLARED, "defense": _OTHER}}, "was run with")
_MORE = {**_DECLARED, "\x1b[2J\n" * 10**5: 1}
cell("a cell of more settings", {**SOUND_CELL, "declared": _MORE}, "was run with")


@CELLS.add("a cell of 33 MB", "more than")
def _(folder: Path) -> None:
    with (folder / CELL).open("r+b") as file:
        file.truncate(33 << 20)
