"""Repair a finished model that may carry a backdoor: :func:`purify`."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asepsis.core.evidence import write_evidence
from asepsis.core.folders import whole_folder
from asepsis.core.manifest import FORMAT, RECORDS, check_writable, identity, write_manifest
from asepsis.core.phases import Outcome, Script
from asepsis.core.weights import Checkpoint, find_checkpoint
from asepsis.data import Data, read
from asepsis.defenses.base import Defense, DefenseConfig, Given
from asepsis.errors import BackendError, ConfigError, DefenseInert, MissingReference, ModelError
from asepsis.training import build
from asepsis.training.checkpoint import versions
from asepsis.training.driver import Driver, Progress, derive_seed, silent
from asepsis.training.loop import LoopDriver
from asepsis.training.models import load_for, load_trained
from asepsis.training.processes import check_alone
from asepsis.training.rewriting import CheckpointDriver
from asepsis.training.settings import Settings
from asepsis.training.zero import uses_deepspeed

log = logging.getLogger("asepsis")

Choice = str | DefenseConfig

#: Few rows, a finished model: small steps, small batches. How long is the defense's to say.
TUNING = Settings(learning_rate=2e-5, batch_size=8)


@dataclass(frozen=True)
class Purified:
    """A repaired model.

    Attributes
    ----------
    outcomes : dict
        What each defense did, by its name, in the order they ran.
    manifest : dict
        Victim, base, settings, versions, and what was edited: tokens reset, ratios, what was kept.
    folder : Path
        The repaired checkpoint, in a temporary folder that lasts as long as this object.
    """

    outcomes: dict[str, Outcome]
    manifest: dict[str, Any]
    folder: Path
    _scratch: tempfile.TemporaryDirectory[str] = field(repr=False)

    @cached_property
    def loaded(self) -> tuple[nn.Module, Any]:
        """The repaired model and its tokenizer, loaded when they are first asked for."""
        return load_trained(self.folder)

    @property
    def model(self) -> nn.Module:
        """The repaired model."""
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.loaded[1]

    @property
    def verdicts(self) -> dict[str, str]:
        """One word of each defense that has one."""
        return {name: o.report["verdict"] for name, o in self.outcomes.items() if "verdict" in o.report}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a plain checkpoint and ``asepsis.json``; return the folder, which appears whole or not at all."""
        target = Path(folder)
        check_writable(target)
        with whole_folder(target) as scratch:
            for file in sorted(self.folder.iterdir()):
                if file.name not in RECORDS:
                    shutil.copyfile(file, scratch / file.name)
            for outcome in self.outcomes.values():
                if outcome.evidence:
                    write_evidence(scratch, outcome.evidence)
            write_manifest(scratch, self.manifest)
        return target


def purify(
    model: str | Path,
    *,
    base: str | Path | None,
    defense: Choice | Sequence[Choice] = ("epur", "finemixing"),
    clean: Any = None,
    counts: str | Path | Mapping[Any, float] | None = None,
    corpus: Sequence[str] | None = None,
    args: Any = None,
    settings: Settings | None = None,
    scratch: str | Path | None = None,
    progress: Progress = silent,
) -> Purified:
    """Repair a finished model with the model it was tuned from.

    Parameters
    ----------
    model, base : str or Path
        Folders, hub ids in the local cache or ``demo:`` names: the model that was handed over, and the pretrained
        model it was tuned from. Both must be safetensors; neither is altered.
    defense : str, config or several of them
        Defenses against poisoned weights, in the order they run.
    clean : as data, optional
        Trusted rows of the task, which ``finemixing`` needs.
    counts, corpus : optional
        How often tokens are expected, for ``epur``: a JSON file or mapping of token to count, or trusted texts.
    args : transformers.TrainingArguments, optional
        Tune with the Hugging Face Trainer under these; otherwise the plain loop tunes under ``settings``.
    settings : Settings, optional
        Of the plain loop; by default a learning rate of 2e-5 and 8 rows per batch. How long is tuned is the defense's
        to say.
    scratch : path, optional
        Where checkpoints are written on the way, up to two of the model's size; by default the system's temporary
        folder.
    progress : callable, optional
        Called with ``(phase, done, of)``.

    Returns
    -------
    Purified

    Raises
    ------
    MissingReference
        A defense needs something that was not given.
    DefenseInert
        The two models do not differ: there is nothing to repair.
    AccuracyLost
        What the repaired model can do on clean rows fell below what was allowed.
    ModelError
        A model cannot be read, is no version of the other, or holds weights that are not finite.
    BackendError
        ``args`` ask for DeepSpeed, or there are several processes.
    """
    if uses_deepspeed(args):
        raise BackendError("purify does not tune under DeepSpeed: use one process without it")
    check_alone("purify", args)
    choices = [defense] if isinstance(defense, (str, DefenseConfig)) else list(defense)
    if not choices:
        raise ConfigError("defense names none; there are epur and finemixing, for example")
    if isinstance(model, nn.Module) or isinstance(base, nn.Module):
        raise ModelError("purify works on files: save the model with save_pretrained and give the folder")
    _check_needs([build(choice) for choice in choices], base=base, clean=clean)
    assert base is not None
    chosen = settings or TUNING
    seed = args.seed if args is not None else chosen.seed
    origin = {"model": identity(model), "base": identity(base)}
    with contextlib.ExitStack() as stack:
        victim = Checkpoint.open(stack.enter_context(find_checkpoint(model)))
        pretrained = Checkpoint.open(stack.enter_context(find_checkpoint(base)))
        rows = None if clean is None else _read(clean, victim)
        given = Given(base=pretrained, clean=rows, counts=counts, corpus=corpus)
        defenses = [build(choice, given) for choice in choices]
        work = tempfile.TemporaryDirectory(prefix=".asepsis-", dir=scratch)
        stack.push(partial(_cleanup_on_error, work))
        driver = CheckpointDriver(
            victim, partial(_driver, rows, chosen, args, progress), Path(work.name), progress=progress
        )
        torch.manual_seed(derive_seed(seed))
        outcomes = {one.name: driver.run(partial(_repair, one, rows)) for one in defenses}
        if driver.checkpoint is victim:
            raise DefenseInert("no defense wrote a checkpoint; nothing was repaired")
        manifest = {
            "format": FORMAT,
            "model": str(model),
            "base": str(base),
            "origin": origin,
            "n_classes": None if rows is None else rows.n_classes,
            "defenses": [{"name": one.name, "config": one.config.to_dict()} for one in defenses],
            "acted": {name: vars(outcome.acted) for name, outcome in outcomes.items()},
            "report": {name: outcome.report for name, outcome in outcomes.items()},
            "data": None
            if rows is None
            else {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint},
            "settings": {"seed": seed} | (vars(chosen) if args is None else {"trainer": True}),
            "steps": driver.steps_done,
            "versions": versions(),
        }
        return Purified(outcomes, manifest, driver.checkpoint.folder, work)


def _cleanup_on_error(work: tempfile.TemporaryDirectory[str], kind: Any, *_: Any) -> None:
    if kind is not None:
        work.cleanup()


def _repair(defense: Defense[Any], rows: Data | None, victim: Checkpoint) -> Script:
    return defense.repair(victim, rows)


def _check_needs(defenses: list[Defense[Any]], *, base: Any, clean: Any) -> None:
    given = {"base": base, "clean": clean}
    names = [one.name for one in defenses]
    if len(set(names)) < len(names):
        raise ConfigError(f"defense names {', '.join(names)}; each runs once")
    for one in defenses:
        if type(one).repair is Defense.repair:
            one.repair(None, None)  # type: ignore[arg-type] # raises, and says what the defense is for
    if base is None:
        raise MissingReference(
            "purify needs base: the model that this one was tuned from; --base on the command line"
        )
    for one in defenses:
        if missing := sorted(need for need in one.needs if given.get(need, ...) is None):
            options = ", ".join(f"--{need}" for need in missing)
            raise MissingReference(
                f"{one.name} needs {', '.join(missing)}; pass it to purify(), or {options} on the command line"
            )


def _read(clean: Any, victim: Checkpoint) -> Data:
    """Read clean rows as rows of the task that the victim is for."""
    architectures = " ".join(map(str, victim.config.get("architectures") or ()))
    if "SequenceClassification" in architectures:
        labels = victim.config.get("id2label")
        n = len(labels) if isinstance(labels, dict) else 2
        rows = read(clean, task="classification", n_classes=n)
        if (rows.n_classes or 0) > n:
            raise ModelError(f"{victim.folder} has {n} classes, the data has {rows.n_classes}")
        # rows read before the model was known may lack its last classes
        return replace(rows, n_classes=n) if (rows.n_classes or 0) < n else rows
    if "CausalLM" in architectures or "LMHead" in architectures:
        return read(clean, task="causal")
    raise ModelError(
        f"{victim.folder} is a {architectures or 'model without a task'}: clean rows tune text classifiers and causal language "
        "models; give no clean rows, or a model with its task's head"
    )


def _driver(rows: Data | None, settings: Settings, args: Any, progress: Progress, folder: Path) -> Driver:
    if rows is None:
        raise MissingReference(
            "training or scoring needs clean rows; pass clean=..., or --clean on the command line"
        )
    network, tokenizer = load_for(rows, folder, seed=settings.seed)
    if args is None:
        return LoopDriver(network, tokenizer, rows, settings, progress=progress)
    from asepsis.training.trainer import TrainerDriver  # transformers.Trainer takes seconds to import

    return TrainerDriver(network, tokenizer, rows, args, max_length=settings.max_length, progress=progress)
