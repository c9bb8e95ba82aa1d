"""Go on where a killed run stopped, as if nothing had happened.

A defense is a script that asks and is answered. A checkpoint holds every answer so far and the state of what runs: the
weights, and in the middle of a training its optimizer, losses and place. To resume, the script is run again from its
start and fed the answers it was given before, with the random generators as they then were; the first request without an
answer is carried out. What a script itself does to the weights between requests it asks for by
:class:`~asepsis.core.phases.Touch`, so that it is not done twice.
"""

from __future__ import annotations

import logging
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asepsis.core.phases import Answer, Encode, Losses, Request, Spell, Train
from asepsis.core.state_file import read_state, states, write_state
from asepsis.errors import CheckpointError, ConfigError
from asepsis.training.processes import known_to_any, own_folder, part_folders, true_for_all

log = logging.getLogger("asepsis")

#: Batches, trained on or scored, between two checkpoints.
EVERY = 500


class Journal:
    """What a run has been answered so far, in memory and every so often on the disk.

    Parameters
    ----------
    folder : path
        Where checkpoints are written; the newest two are kept. Each of several processes has a folder of its own there.
    every : int
        Batches, trained on or scored, between two checkpoints.
    resume : bool
        Go on at the newest whole checkpoint; without one the run begins at its start and says so.
    """

    def __init__(self, folder: str | Path, *, every: int = EVERY, resume: bool = False) -> None:
        if every < 1:
            raise ConfigError(f"checkpoint_every must be at least 1, got {every!r}")
        self.folder, self.every, self.resume = Path(folder), every, resume
        self.snapshots: list[tuple[int, Losses]] = []  # of the training that runs
        self._made_of: dict[str, Any] = {}
        self._entries: list[dict[str, Any]] = []
        self._at = 0  # entries fed
        self._loaded: dict[str, Any] | None = None
        self._whole: Path | None = None
        self._batches = 0
        self._number = 0

    def open(self, made_of: dict[str, Any], versions: dict[str, str]) -> None:
        """Find where to go on, before anything is trained.

        Parameters
        ----------
        made_of
            What decides the result: data, base model, defense, settings. A resume with anything else is refused.
        versions
            Of the packages; others are warned of, because they may round otherwise.

        Raises
        ------
        CheckpointError
            There are checkpoints and ``resume`` is off, none of them is whole, or they are of another run.
        """
        self._made_of = {"made_of": made_of, "versions": versions}
        self.folder = own_folder(self.folder)
        found = {int(path.name.split("-")[1]): path for path in states(self.folder)}
        numbers = known_to_any(list(found))
        if not numbers:
            if self.resume:
                log.warning("resume: there is no checkpoint in %s; the run begins at its start", self.folder)
            return
        if not self.resume:
            raise CheckpointError(
                f"{self.folder} holds {len(numbers)} checkpoints of an earlier run: go on there with resume=True (--resume on "
                "the command line), or delete the folder"
            )
        self._number = numbers[0]
        for number in numbers:
            path = found.get(number, self.folder / f"state-{number:08d}")
            state = _whole(path) if number in found else None
            if not true_for_all(state is not None):
                log.warning("resume: the checkpoint before %s is tried", path)
                continue
            assert state is not None
            _check(state, made_of, versions, path)
            self._loaded, self._entries, self._whole = state, state["entries"], path
            self.snapshots = state["snapshots"]
            log.info("resume: %d requests are answered already in %s", len(self._entries), path)
            return
        raise CheckpointError(
            f"none of the {len(numbers)} checkpoints in {self.folder} is whole; delete the folder"
        )

    @property
    def replaying(self) -> bool:
        """Whether the next request has an answer already."""
        return self._at < len(self._entries)

    def feed(self, request: Request) -> Answer:
        """Return the answer that a request got before, with what the script saw on the way.

        Raises
        ------
        CheckpointError
            The script asks for something else than it did: it is another version, or depends on something unrecorded.
        """
        entry = self._entries[self._at]
        if entry["request"] != _described(request):
            raise CheckpointError(
                f"request {self._at} of the run was {entry['request']}, now the defense asks for {_described(request)}: it is "
                "another version of it; delete the checkpoints and begin anew"
            )
        self._at += 1
        _hand_over(request, entry["snapshots"])
        set_rng_state(entry["rng"])
        return entry["answer"]

    def loaded(self) -> dict[str, Any] | None:
        """Return the state a checkpoint was made in, once, as soon as it is time to take it up; None otherwise.

        That is just before the last recorded answer is handed over, because the script may go on with the weights at once;
        or, in the middle of a training, when its request comes.
        """
        state = self._loaded
        if state is None or len(self._entries) - self._at > (state["running"] is None):
            return None
        self._loaded = None
        return state

    def take_up(self, request: Train) -> None:
        """Show a training that is taken up in its middle what it had been shown."""
        _hand_over(request, self.snapshots)

    def note(self, request: Request, answer: Answer) -> None:
        """Add an answer that was just found."""
        recomputed = isinstance(request, (Encode, Spell))  # from the data alone
        self._entries.append(
            {
                "request": _described(request),
                "answer": None if recomputed else answer,
                "snapshots": self.snapshots,
                "rng": rng_state(),
            }
        )
        self.snapshots = []
        self._at += 1

    def tick(self) -> None:
        """Count a batch."""
        self._batches += 1

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._batches >= self.every

    def save(self, driver: dict[str, Any], running: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, and let go of the one before the last.

        Parameters
        ----------
        driver
            The driver's state.
        running
            That of the training in whose middle this is.
        """
        tree = {
            **self._made_of,
            "entries": self._entries,
            "snapshots": self.snapshots,
            "driver": driver,
            "running": running,
            "rng": rng_state(),
        }
        self._number += 1
        written = write_state(self.folder, self._number, tree)
        _remove(self.folder, but=(written, self._whole))
        self._whole, self._batches = written, 0


def discard(folder: Path) -> None:
    """Remove the checkpoints of a run that is done and saved, and their folder if nothing else is in it."""
    for part in part_folders(folder):
        discard(part)
    _remove(folder, but=())
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove(folder: Path, *, but: tuple[Path | None, ...]) -> None:
    for path in [
        *states(folder),
        *folder.glob(".state-*.part"),
    ]:  # the latter are of a run killed while it wrote
        if path not in but:
            path.unlink()


def _whole(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = read_state(path)
    except CheckpointError as error:
        log.warning("resume: %s", error)
        return None
    return found


def rng_state() -> dict[str, Any]:
    """Return the state of the generators a script may draw from: torch's, numpy's and Python's global ones."""
    version, internal, gauss = random.getstate()
    name, *numbers = np.random.get_state()  # noqa: NPY002 - the global generator is what may be drawn from
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, np.array(internal), gauss),
        "numpy": (name, *numbers),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what an optimizer holds per parameter, in their order, and its rates."""
    state = optimizer.state_dict()
    kept = [{k: g[k] for k in ("lr", "initial_lr") if k in g} for g in state["param_groups"]]
    count = sum(len(group["params"]) for group in state["param_groups"])
    return {"parameters": [state["state"].get(i, {}) for i in range(count)], "groups": kept}


def put_optimizer_state(optimizer: torch.optim.Optimizer, found: dict[str, Any]) -> None:
    """Put back what :func:`optimizer_state` returned."""
    state = optimizer.state_dict()
    state["state"] = {i: values for i, values in enumerate(found["parameters"]) if values}
    for group, kept in zip(state["param_groups"], found["groups"], strict=True):
        group.update(kept)
    optimizer.load_state_dict(state)


def _hand_over(request: Request, snapshots: list[tuple[int, Losses]]) -> None:
    if isinstance(request, Train) and request.records is not None:
        for step, losses in snapshots:
            request.records.snapshot(step, losses)


def _described(request: Request) -> list[Any]:
    """Return what tells a request from another: its kind, its name, and a checksum of each choice of rows."""
    chosen = {k: zlib.crc32(v.tobytes()) for k, v in vars(request).items() if isinstance(v, np.ndarray)}
    return [type(request).__name__, getattr(request, "name", ""), chosen]


def _check(state: dict[str, Any], made_of: dict[str, Any], versions: dict[str, str], path: Path) -> None:
    then, now = _flat(state["made_of"]), _flat(made_of)
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if names:
        listed = "; ".join(f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in names[:5])
        raise CheckpointError(f"{path} is of another run: {listed}. Resume with what it was begun with")
    other = {name: version for name, version in versions.items() if state["versions"].get(name) != version}
    if other:
        log.warning(
            "resume: begun with %s, now with %s: results may round otherwise", state["versions"], versions
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        found |= inner
    return found
