"""Keep your own trainer: :func:`defended` makes a Trainer class whose ``train()`` runs a defense."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from asepsis.core.lora import layers
from asepsis.core.outcome import Outcome
from asepsis.data import Data
from asepsis.defenses.base import Defense, Given
from asepsis.errors import BackendError, ConfigError, ModelError
from asepsis.training import (
    Choice,
    Run,
    build,
    describe,
    read_reference,
    script_of,
)
from asepsis.training.bars import PassBars, name_bar
from asepsis.training.checkpoint import save_model, versions
from asepsis.training.one_phase import OnePhase, Phase, StepDone
from asepsis.training.own_driver import OwnDriver, check_trainer
from asepsis.training.own_rows import ID, OwnRows, task_of, with_ids
from asepsis.training.processes import check_resumable
from asepsis.training.record import made_of, manifest_of, settings_of
from asepsis.training.resume import EVERY, Journal, discard

log = logging.getLogger("asepsis")


def defended(base: type[Any], defense: Choice, *, clean_reference: Any = None) -> type[Any]:
    """Return a subclass of a Trainer class whose ``train()`` trains under a defense.

    Everything else stays the base's: its arguments, tokenized rows, data collator, callbacks, evaluation and logging. All
    phases of the defense run inside one ``train()``. Afterwards ``trainer.run`` holds the result (:class:`asepsis.Run`), and
    ``trainer.save_model()`` writes stock files.

    Parameters
    ----------
    base : type
        ``transformers.Trainer``, ``trl.SFTTrainer`` or a subclass of either. The loss of training rows is the cross entropy
        per row whatever the base computes, because a defense has to tell rows apart; rows that are evaluated are the base's.
    defense : str, config or None
        One that acts during training; None is the undefended control.
    clean_reference : dataset, as data, or "auto", optional
        Trusted rows, for the defenses that need them: tokenized like the training rows, or any rows that
        :func:`asepsis.read` takes; :class:`trl.SFTTrainer` prepares them like its own.

    Raises
    ------
    ConfigError
        ``base`` is no Trainer or learns by comparing rows, or the defense does not act during training.

    Examples
    --------
    >>> import asepsis, trl
    >>> Trainer = asepsis.defended(trl.SFTTrainer, asepsis.AblConfig(isolation_ratio=0.01))  # doctest: +SKIP
    >>> trainer = Trainer(model, args=args, train_dataset=rows)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    >>> trainer.run.outcome.flagged  # doctest: +SKIP
    """
    if not (isinstance(base, type) and issubclass(base, Trainer)):
        raise ConfigError(f"defended() takes a class of transformers.Trainer, got {base!r}")
    if defense not in (None, "none"):
        built = build(defense)
        if type(built).script is Defense.script:
            built.script(None, None)  # type: ignore[arg-type] # raises, and says what the defense is for
    loss = base.compute_loss
    of_trl, whose = loss.__module__.startswith("trl."), loss.__qualname__.partition(".")[0]
    if of_trl and whose != "SFTTrainer":
        raise ConfigError(
            f"{base.__name__} learns by another loss than the cross entropy of rows that defenses act on"
        )
    if loss is not Trainer.compute_loss and not of_trl:
        log.warning(
            "%s computes a loss of its own: training rows do not get it, a defense needs the cross entropy of each row",
            base.__name__,
        )
    settled = {"_defense": defense, "_clean_reference": clean_reference, "__doc__": base.__doc__}
    return type(f"Defended{base.__name__}", (_Defended, base), settled)


class _Defended(OnePhase):
    """What stands before the base in a class that :func:`defended` makes."""

    _defense: Choice = None
    _clean_reference: Any = None

    # of the base, whichever it is
    args: Any
    model: Any
    callback_handler: Any
    _signature_columns: Any
    _formatting_func: Any

    # of a running train()
    _ignored: list[str] | None
    _history: list[Any]
    _begun: bool
    _last: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.run: Run | None = None
        self._driver: OwnDriver | None = None
        if "train_dataset" in kwargs:
            kwargs["train_dataset"] = with_ids(kwargs["train_dataset"])
        else:
            names = list(inspect.signature(super().__init__).parameters)
            at = names.index("train_dataset") if "train_dataset" in names else len(args)
            args = tuple(with_ids(value) if i == at else value for i, value in enumerate(args))
        super().__init__(*args, **kwargs)
        check_trainer(self)
        self.add_callback(StepDone(self))

    @property
    def outcome(self) -> Outcome | None:
        """What the defense did and found, once it ran."""
        return None if self.run is None else self.run.outcome

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,  # noqa: FBT001 - Trainer's signature
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Run the defense, all its phases; see the base for what is returned, which is of the last phase.

        Parameters
        ----------
        resume_from_checkpoint : bool, optional
            True goes on at the checkpoints in ``output_dir/asepsis``. A folder is refused: the base's own checkpoints know
            nothing of phases.
        trial, ignore_keys_for_eval
            A trial is refused; the keys go to the base.
        """
        if self.phase is not None:
            raise ConfigError("train() was called by its own training")
        check_trainer(self)
        if trial is not None or isinstance(resume_from_checkpoint, str):
            raise ConfigError(
                "a defended trainer runs no hyperparameter search, and resumes from its own checkpoints only: "
                "resume_from_checkpoint=True"
            )
        tokenizer = getattr(self, "_tokenizer", None) or self.processing_class
        if getattr(tokenizer, "pad_token_id", None) is None:
            raise ModelError("a defended trainer needs processing_class: a tokenizer with a pad token")
        task, n_classes = task_of(self.model)
        rows = OwnRows(
            self.train_dataset,
            self.data_collator,
            self._columns(),
            tokenizer,
            task=task,
            n_classes=n_classes,
            source="train_dataset",
        )
        own, given = self._given(rows)
        script = script_of(self._defense, given, rows.data)
        described, args = describe(self._defense), self.args
        settled = settings_of(args)
        journal = self._journal(resume=bool(resume_from_checkpoint))
        if journal is not None:
            journal.open(made_of(rows.data, self.model, described, given, settled), versions())
        bars = PassBars(self)
        driver = OwnDriver(self, rows, tokenizer, journal, progress=bars)
        driver.own |= own
        self._ignored, self._history, self._begun, self._last = ignore_keys_for_eval, [], False, None
        self._driver = driver
        try:
            outcome = driver.run(script(self.model, rows.data))
        finally:
            self._driver = None
            bars.close()
        manifest = manifest_of(
            driver, outcome, described, settled, name=getattr(self.model, "name_or_path", "")
        )
        self.run = Run(self.model, tokenizer, outcome, rows.data, manifest, driver.stages)
        self.log({f"asepsis/{name}": value for name, value in _numbers(outcome).items()})
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        return self._last

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the base does; during a phase with its number and what the defense watches, under ``asepsis/``."""
        phase, driver = self.phase, self._driver
        if phase is not None and driver is not None:
            logs = {**logs, "asepsis/phase": driver.requests, "asepsis/loss": float(phase.mean)}
            if phase.request.isolated is not None:
                logs["asepsis/isolated_loss"] = float(phase.apart)
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if any(
            True for _ in layers(self.model)
        ):  # what the base would write, peft and transformers could not read
            if self.run is None:
                raise ModelError(
                    "the defense has not come to its end, so there is nothing to save; call train() first"
                )
            folder.mkdir(parents=True, exist_ok=True)
            save_model(self.model, self.run.tokenizer, folder, self.run.data, self.run.outcome.edited)
            self.run.tokenizer.save_pretrained(folder)
        else:
            super()._save(output_dir, state_dict)
        if self.run is not None:
            discard(self._checkpoints)

    def _train_phase(self, phase: Phase, args: TrainingArguments) -> None:
        """Run the base's loop for one phase, on its network and under its arguments, with a fresh optimizer."""
        handler, kept = self.callback_handler, (self.args, self.model, self.model_wrapped)
        expects = (self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga)

        def begin(args: Any, state: Any, control: Any) -> Any:
            # one train() for whoever listens: steps go on counting from phase to phase, and it begins once
            phase.begin(self)
            state.log_history = self._history
            state.max_steps = phase.driver.steps_done + phase.plan.steps
            state.global_step = phase.driver.steps_done + phase.watch.steps
            self._globalstep_last_logged = self._initial_global_step = state.global_step
            control.should_training_stop = False
            if not self._begun:
                control = handler.call_event("on_train_begin", args, state, control)
            self._begun = True
            name_bar(self, phase.request.name, state.max_steps)
            return control

        handler.on_train_begin, handler.on_train_end = begin, lambda args, state, control: control
        try:
            self.phase, self.args = phase, args
            self.model = self.model_wrapped = phase.network
            self.optimizer = self.lr_scheduler = None
            # weights already divide by the size of the whole step, over micro-batches and ranks
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
            self._last = super().train(ignore_keys_for_eval=self._ignored)
        finally:
            del handler.on_train_begin, handler.on_train_end
            self.phase = None
            self.args, self.model, self.model_wrapped = kept
            self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = expects
            self.optimizer = self.lr_scheduler = None

    def _columns(self) -> list[str] | None:
        """Return what the base would hand its collator of a row."""
        if not self.args.remove_unused_columns:
            return None
        self._set_signature_columns_if_needed()
        return [name for name in self._signature_columns if name != ID]

    def _given(self, rows: OwnRows) -> tuple[dict[str, OwnRows], Given]:
        """Return the clean rows that were handed over, tokenized ones by their name as well."""
        reference = self._clean_reference
        if (
            reference is None
            or isinstance(reference, (str, Path, Data))
            or not hasattr(reference, "column_names")
        ):
            return {}, Given(clean_reference=read_reference(reference, rows.data))
        if hasattr(self, "_prepare_dataset") and "input_ids" not in reference.column_names:
            reference = self._prepare_dataset(
                reference, self.processing_class, self.args, False, self._formatting_func, "clean_reference"
            )
        elif "input_ids" not in reference.column_names:
            return {}, Given(clean_reference=read_reference(reference, rows.data))
        clean = OwnRows(
            with_ids(reference),
            rows.collate,
            rows.columns,
            rows.tokenizer,
            task=rows.task,
            n_classes=rows.data.n_classes,
            source="clean_reference",
        )
        return {"clean_reference": clean}, Given(clean_reference=clean.data)

    @property
    def _checkpoints(self) -> Path:
        return Path(self.args.output_dir) / "asepsis"

    def _journal(self, *, resume: bool) -> Journal | None:
        """Return where the run is written down, as often as the base would have saved; None where it would not have."""
        args = self.args
        if args.save_strategy == SaveStrategy.NO and not resume:
            return None
        try:
            check_resumable(self.model, args)
        except BackendError as error:
            if resume:
                raise
            log.warning("no checkpoints are written: %s", error)
            return None
        steps = args.save_strategy == SaveStrategy.STEPS and args.save_steps >= 1
        return Journal(self._checkpoints, every=int(args.save_steps) if steps else EVERY, resume=resume)


def _numbers(outcome: Outcome) -> dict[str, float]:
    """Return what an outcome says in numbers."""
    found: dict[str, float] = {k: v for k, v in outcome.report.items() if type(v) in (int, float)}
    parts = {"flagged": outcome.flagged, "isolated": outcome.isolated, "edited": outcome.edited}
    return found | {name: len(ids) for name, ids in parts.items()} | vars(outcome.acted)
