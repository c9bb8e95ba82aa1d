"""Run a defense: :func:`defend` trains a clean model, :func:`scan_data` only judges the rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asepsis.core.manifest import identity
from asepsis.core.phases import Outcome, Script
from asepsis.data import Data, read
from asepsis.defenses import available, load
from asepsis.defenses.base import Defense, DefenseConfig, Given
from asepsis.errors import ConfigError, DefenseInert, MissingReference, ModelError
from asepsis.training.align import check_reference
from asepsis.training.checkpoint import save_run, versions
from asepsis.training.driver import Driver, Progress, silent
from asepsis.training.loading import broken_weight
from asepsis.training.loop import LoopDriver
from asepsis.training.models import load_for
from asepsis.training.processes import check_resumable
from asepsis.training.record import made_of, manifest_of, settings_of
from asepsis.training.resume import EVERY, Journal
from asepsis.training.settings import Settings
from asepsis.training.shards import local
from asepsis.training.undefended import undefended

__all__ = [
    "Run",
    "Settings",
    "build",
    "defend",
    "describe",
    "read_reference",
    "run_script",
    "script_of",
]

Choice = str | DefenseConfig | None


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes
    ----------
    model, tokenizer
        The trained model, on the device it was trained on.
    outcome : Outcome
        What the defense did and found.
    data : Data
        What it was given.
    manifest : dict
        Data fingerprint, base, settings, seeds, versions, on how much the defense acted.
    stages : mapping
        Weights at the stages the defense marked, by name; empty unless they were asked for.
    """

    model: nn.Module
    tokenizer: Any
    outcome: Outcome
    data: Data
    manifest: dict[str, Any]
    stages: Mapping[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[nn.Module]:
        """Lend the model as it was at a stage the defense marked; afterwards it is as it was before.

        >>> with run.stage("before edit") as model:  # doctest: +SKIP
        ...     measure(model, run.tokenizer, test)

        Raises
        ------
        ConfigError
            No weights of that stage were kept; the message lists those there are.
        """
        if name not in self.stages:
            kept = ", ".join(self.stages) or "none; defend(..., keep_stages=True) keeps those a defense marks"
            raise ConfigError(f"no stage {name!r} was kept; there are: {kept}")
        parameters, was_training = dict(self.model.named_parameters()), self.model.training
        now = {key: local(parameters[key].detach()).clone() for key in self.stages[name]}
        try:
            _copy_into(parameters, self.stages[name])
            yield self.model
        finally:
            _copy_into(parameters, now)
            self.model.train(was_training)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a stock checkpoint (or peft adapter), ``asepsis.json`` and the judged rows; return the folder.

        Of several processes the first writes. Where the weights are spread over them, every process has to call this;
        where each holds them whole, the others return at once, without waiting for the folder.
        """
        return save_run(folder, self.model, self.tokenizer, self.manifest, self.outcome, self.data)


def defend(
    model: str | Path | nn.Module,
    data: Any,
    *,
    defense: Choice,
    processing_class: Any = None,
    clean_reference: Any = None,
    args: Any = None,
    settings: Settings | None = None,
    peft_config: Any = None,
    progress: Progress = silent,
    keep_stages: bool = False,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = EVERY,
    resume: bool = False,
) -> Run:
    """Train ``model`` on untrusted ``data`` under a defense.

    Parameters
    ----------
    model : str, Path or Module
        A hub id, a folder, a packaged name, or a transformers or peft model (then give ``processing_class``).
    data : Data, path, datasets.Dataset or list of dict
        Untrusted rows, see :func:`asepsis.data.read`.
    defense : str, config or None
        A defense's name, its config object, or None (or ``"none"``) for the undefended control.
    processing_class
        The tokenizer, where ``model`` is a module.
    clean_reference : as data, or "auto", optional
        Trusted rows, for the defenses that need them. ``"auto"`` lets a defense that can take the least suspicious
        rows of ``data`` itself, which is an assumption and is logged as one.
    args : transformers.TrainingArguments, optional
        Train with the Hugging Face Trainer under these arguments; otherwise the plain loop trains under
        ``settings``.
    settings : Settings, optional
        Of the plain loop; with ``args`` only ``max_length`` is read.
    peft_config : peft.PeftConfig, optional
        Train this adapter instead of all weights.
    progress : callable, optional
        Called with ``(phase, done, of)``.
    keep_stages : bool
        Keep the weights at the stages a defense marks (for ``btu`` before and after the edit), to be measured with
        :meth:`Run.stage`. Each stage is a copy of the trained weights in CPU memory.
    checkpoint_dir : path, optional
        Write the state of the run to this folder, so that a killed run can go on; see ``docs/training.md``. What is there
        stays when the run is done: delete it once the result is saved.
    checkpoint_every : int
        Batches, trained on or scored, between two checkpoints.
    resume : bool
        Go on at the newest whole checkpoint in ``checkpoint_dir``. On the CPU the result is that of a run that was never
        killed, bit for bit. Without a checkpoint the run begins at its start, and says so.

    Returns
    -------
    Run

    Raises
    ------
    MissingReference
        If the defense needs something that was not given.
    DefenseInert
        If the defense could not act.
    CheckpointError
        ``checkpoint_dir`` holds checkpoints and ``resume`` is off; or they are of another run, or none is whole.
    """
    if resume and checkpoint_dir is None:
        raise ConfigError(
            "resume=True needs checkpoint_dir: the folder that the killed run wrote its checkpoints to"
        )
    rows = read(data)
    given = Given(clean_reference=read_reference(clean_reference, rows))
    journal = (
        None if checkpoint_dir is None else Journal(checkpoint_dir, every=checkpoint_every, resume=resume)
    )
    return run_script(
        model,
        rows,
        script_of(defense, given, rows),
        defense=describe(defense),
        processing_class=processing_class,
        args=args,
        settings=settings,
        peft_config=peft_config,
        progress=progress,
        keep_stages=keep_stages,
        journal=journal,
        given=given,
    )


def run_script(
    model: str | Path | nn.Module,
    data: Any,
    script: Callable[[nn.Module, Data], Script],
    *,
    defense: dict[str, Any],
    processing_class: Any = None,
    args: Any = None,
    settings: Settings | None = None,
    peft_config: Any = None,
    progress: Progress = silent,
    keep_stages: bool = False,
    journal: Journal | None = None,
    given: Given | None = None,
) -> Run:
    """Drive any script, a defense's or your own.

    ``defense`` describes it in the manifest, ``given`` is what it was handed beside model and data; a ``journal`` makes it
    resumable. The rest as `defend`.
    """
    chosen = settings or Settings()
    rows = read(data)
    settled = settings_of(chosen if args is None else args)
    seed = settled["seed"]
    network, tokenizer = _prepare(model, processing_class, rows, peft_config, seed)
    # before the work: what it was then, and an unreadable one must not cost a finished training
    origin = {"model": identity(model)} if isinstance(model, (str, Path)) else None
    if journal is not None:
        check_resumable(network, args)
        decides = {**settled, "max_length": chosen.max_length, "keep_stages": keep_stages}
        journal.open(made_of(rows, network, defense, given, decides, origin=origin), versions())
    driver: Driver
    if args is None:
        driver = LoopDriver(
            network, tokenizer, rows, chosen, progress=progress, keep_stages=keep_stages, journal=journal
        )
    else:
        from asepsis.training.trainer import TrainerDriver  # transformers.Trainer takes seconds to import

        driver = TrainerDriver(
            network,
            tokenizer,
            rows,
            args,
            max_length=chosen.max_length,
            progress=progress,
            keep_stages=keep_stages,
            journal=journal,
        )
    outcome = driver.run(script(network, rows))
    # the last step's update is seen by no loss
    if (key := broken_weight(network)) is not None:
        raise DefenseInert(f"after training {key} holds values that are not finite; lower the learning rate")
    name = str(model) if isinstance(model, (str, Path)) else getattr(network, "name_or_path", "")
    manifest = manifest_of(driver, outcome, defense, settled, name=name, origin=origin)
    return Run(network, tokenizer, outcome, rows, manifest, driver.stages)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        local(parameters[name]).copy_(value)


def read_reference(source: Any, rows: Data) -> Data | Literal["auto"] | None:
    """Return clean rows as rows of the run's task."""
    if source is None:
        return None
    if isinstance(source, str) and source == "auto":
        return "auto"
    reference = read(source, task=rows.task, n_classes=rows.n_classes)
    check_reference(reference, rows)
    return reference


def script_of(choice: Choice, given: Given, rows: Data) -> Callable[[nn.Module, Data], Script]:
    """Return the script of a defense that acts during training and has what it needs."""
    if choice is None or choice == "none":
        return lambda model, data: undefended(len(data))
    defense = build(choice, given)
    if type(defense).script is Defense.script:
        defense.script(None, rows)  # raises, and says what the defense is for
    missing = sorted(need for need in defense.needs if getattr(given, need) is None)
    if missing:
        options = ", ".join(f"--{need.replace('_', '-')}" for need in missing)
        raise MissingReference(
            f"{type(defense).__name__.lower()} needs {', '.join(missing)}; pass it to defend(), or {options} on the "
            "command line"
        )
    return defense.script


def build(choice: Choice, given: Given | None = None) -> Defense[Any]:
    """Return the defense a name or a config stands for, with what the user gave it."""
    if isinstance(choice, DefenseConfig):
        for name in available():
            kind = load(name)
            if kind.config_type is type(choice):
                defense: Defense[Any] = kind(choice, given)
                return defense
        raise ConfigError(f"{type(choice).__name__} belongs to no defense")
    if not isinstance(choice, str):
        raise ConfigError(f"defense must be a name, a config or None, got {choice!r}")
    kind = load(choice)
    named: Defense[Any] = kind(kind.config_type(), given)
    return named


def describe(choice: Choice) -> dict[str, Any]:
    """Return name and settings for the manifest."""
    if choice is None or choice == "none":
        return {"name": "none", "config": {}}
    built = build(choice)
    return {"name": type(built).__module__.rsplit(".", 1)[-1], "config": built.config.to_dict()}


def _prepare(
    model: Any, processing_class: Any, data: Data, peft_config: Any, seed: int
) -> tuple[nn.Module, Any]:
    if isinstance(model, nn.Module):
        if processing_class is None:
            raise ModelError("a model given as a module needs its tokenizer: processing_class=...")
        network, tokenizer = model, processing_class
        classes = getattr(getattr(network, "config", None), "num_labels", None)
        if data.n_classes is not None and classes is not None and classes < data.n_classes:
            raise ModelError(f"the model has {classes} classes, the data has {data.n_classes}")
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "the tokenizer has no pad token; set one, for example tokenizer.pad_token = eos_token"
            )
    else:
        network, tokenizer = load_for(data, model, seed=seed)
        tokenizer = processing_class or tokenizer
    if peft_config is not None:
        from peft import get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = get_peft_model(network, peft_config)
    if not any(p.requires_grad for p in network.parameters()):
        raise ModelError("the model has no trainable parameter")
    return network, tokenizer
