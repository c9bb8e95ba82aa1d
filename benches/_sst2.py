"""What the SST-2 benches share: the released poisoned sets, cells on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from asepsis.data import Data, read, read_rows
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.harness import Case
from asepsis.evaluation.key import PoisonKey

ATTACKS = ("badnets", "addsent", "stylebkd", "synbkd")


def load_case(folder: Path, attack: str, *, rows: int, seed: int) -> Case:
    train = folder / f"{attack}_train10.jsonl"
    poisoned = np.array([row["poisoned"] == 1 for row in read_rows(train)])
    data: Data = read(train)
    return Case(
        train=data.select(drawn(len(data), rows, seed)),
        key=PoisonKey(data.sample_ids, poisoned),
        test=read(folder / "test_clean.jsonl"),
        triggered=read(folder / f"{attack}_test_triggered_to1.jsonl", n_classes=2),
        target_label=1,
    )


def named(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest without the folder of this machine: a result is read elsewhere."""
    source = Path(manifest["data"]["source"])
    return {**manifest, "data": {**manifest["data"], "source": str(source.relative_to(folder))}}


def save(cell: Path, content: dict[str, Any]) -> None:
    scratch = cell.with_suffix(".part")
    scratch.write_text(json.dumps(content, indent=1))
    scratch.replace(cell)
    print(cell.name, f"{content['seconds']:.0f} s", file=sys.stderr)
