"""Everything that asepsis writes, twice over with different content, and long work to send signals to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Things = dict[str, Any]


def made(sound: Path) -> Things:
    """Make what is to be written, before the disk is full."""
    import numpy as np

    from asepsis import Guard, defend
    from asepsis.core.ledger import LossLedger
    from asepsis.testing import tiny_classifier, tiny_rows
    from asepsis.training import Settings

    things: Things = {"sound": sound, "run": [], "ledger": [], "guard": []}
    for state in (0, 1):
        network, tokenizer = tiny_classifier(state)
        chosen = Settings(max_steps=1, device="cpu", precision="fp32", seed=state)
        run = defend(network, tiny_rows(8, state), defense=None, processing_class=tokenizer, settings=chosen)
        ledger = LossLedger(2000)
        ledger.observe(np.arange(2000), np.full(2000, state, np.float32))
        ledger.end_epoch()
        things["run"].append(run)
        things["ledger"].append(ledger)
        rate = (0.2, 0.3)[state]
        guard = Guard.fit(str(sound / "model"), sound / "rows.jsonl", detector="confidence", target_fpr=rate)
        things["guard"].append(guard)
    return things


def _rows(state: int) -> list[dict[str, Any]]:
    return [{"text": f"text {i} {state}", "label": i % 2} for i in range(3000)]


def _rewritten(things: Things, folder: Path, state: int) -> None:
    """Write a checkpoint again through maps, as a repair does."""
    from asepsis.core.folders import whole_folder
    from asepsis.core.weights import Checkpoint
    from asepsis.core.weights.rewrite import copy_stored, rewrite

    source = Checkpoint.open(things["sound"] / ("base", "model")[state])
    with whole_folder(folder / "rewritten") as scratch:
        rewrite(source, scratch, copy_stored)


def _exported(things: Things, folder: Path, state: int) -> None:
    from asepsis.core.folders import whole_folder
    from asepsis.training.export import export_folder

    # export refuses to replace, so a folder around it is replaced
    with whole_folder(folder / "around") as scratch:
        export_folder(things["sound"] / ("base", "model")[state], scratch / "exported")


def _written(name: str) -> Callable[[Things, Path, int], None]:
    def write(things: Things, folder: Path, state: int) -> None:
        from asepsis.data import write_rows

        write_rows(folder / name, _rows(state))

    return write


def _text(things: Things, folder: Path, state: int) -> None:
    from asepsis.training.checkpoint import write_whole

    write_whole(folder / "report.html", f"{state}" * 30_000)


def _key(things: Things, folder: Path, state: int) -> None:
    import numpy as np

    from asepsis.evaluation.key import PoisonKey

    PoisonKey(np.arange(3000), np.arange(3000) % 2 == state).save(folder / "key.jsonl")


def _scan(things: Things, folder: Path, state: int) -> None:
    from asepsis.evaluation.report import save_scan
    from hostile.shown import scan_of

    save_scan(folder / "scan", scan_of([f"text {state} {i}" for i in range(300)]))


def _state(things: Things, folder: Path, state: int) -> None:
    import numpy as np

    from asepsis.core.state_file import write_state

    write_state(folder / "checkpoints", 1 + state, {"losses": np.full(4000, state), "step": state})


#: What writes one of two states into a folder.
WRITERS: dict[str, Callable[[Things, Path, int], object]] = {
    "a run": lambda things, folder, state: things["run"][state].save_pretrained(folder / "run"),
    "a guard": lambda things, folder, state: things["guard"][state].save_pretrained(folder / "guard"),
    "a ledger": lambda things, folder, state: things["ledger"][state].save(folder / "ledger.safetensors"),
    "a checkpoint rewritten": _rewritten,
    "an export": _exported,
    "a report": _text,
    "an answer key": _key,
    "what a scan found": _scan,
    "rows in JSON Lines": _written("rows.jsonl"),
    "rows in JSON": _written("rows.json"),
    "rows in CSV": _written("rows.csv"),
    "rows in Parquet": _written("rows.parquet"),
}
KILLED = tuple(WRITERS)
# a run adds checkpoints, and replaces none; the tests of resuming kill it while it writes them
WRITERS["a checkpoint of a run"] = _state
FULL = tuple(WRITERS)

#: Commands that work for a while and write in the end.
SIGNALS = {
    "train": "train --model {sound}/model --data {sound}/rows.jsonl --defense none --max-steps 20 --output {out}",
    "scan data": "scan data {sound}/rows.jsonl --model {sound}/model --method abl --json {out}",
    "purify": "purify {sound}/model --base {sound}/base --defense epur --counts {sound}/counts.json --output {out}",
    "evaluate": "evaluate {sound}/model --clean {sound}/rows.jsonl --json {out}",
}
