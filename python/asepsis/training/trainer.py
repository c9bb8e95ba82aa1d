"""The Hugging Face driver: one :class:`transformers.Trainer` per training request."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from asepsis.core.phases import Answer, Request, Touch, Train, Trained
from asepsis.data import Data
from asepsis.errors import BackendError
from asepsis.training.bars import name_bar
from asepsis.training.driver import Driver, Progress, silent
from asepsis.training.loop import Watch, closing, finished, make_aligner, with_max_steps
from asepsis.training.one_phase import OnePhase, Phase, Positions, StepDone
from asepsis.training.plan import make_plan
from asepsis.training.resume import Journal
from asepsis.training.shards import WAY_OUT, check_sharded, is_sharded, share
from asepsis.training.zero import SUPPORTED, before_step, check_zero, for_one_phase, lent, uses_deepspeed


class TrainerDriver(Driver):
    """Carry out requests with :class:`transformers.Trainer`: its precision, accumulation, logging and launchers.

    Parameters
    ----------
    args : TrainingArguments
        Used as they are, but for the length of each training, which the request decides, and saving, which the run
        does at its end. ``per_device_train_batch_size``, ``gradient_accumulation_steps``, ``learning_rate``,
        ``max_grad_norm``, ``bf16``/``fp16``, ``optim``, ``seed`` and ``report_to`` keep their meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        data: Data,
        args: TrainingArguments,
        *,
        max_length: int,
        progress: Progress = silent,
        keep_stages: bool = False,
        journal: Journal | None = None,
    ) -> None:
        _refuse(args)
        self.zero = uses_deepspeed(args)
        if self.zero:
            check_zero(args, model)
        super().__init__(
            model,
            tokenizer,
            data,
            seed=args.seed,
            max_length=max_length,
            eval_batch_size=args.per_device_eval_batch_size,
            progress=progress,
            keep_stages=keep_stages,
            journal=journal,
        )
        self.args = args
        self.device = args.device
        self.dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self.sharded = is_sharded(model)
        if self.sharded and self.zero:
            raise BackendError(
                f"weights that are spread over processes do not train under DeepSpeed: {SUPPORTED}"
            )
        if self.sharded:
            check_sharded(model, args.world_size)
            share(model)
        else:
            self.model.to(self.device)

    def answer(self, request: Request) -> Answer:
        """See :meth:`Driver.answer`."""
        if self.sharded and (isinstance(request, Touch) or _of_a_part(request)):
            raise BackendError(
                f"{getattr(request, 'name', 'touch')}: this defense looks at whole weights, which are spread over processes here; use abl or "
                "musclelora, or DDP"
            )
        return super().answer(request)

    def train(self, request: Train) -> Trained:
        """See :meth:`Driver.train`."""
        max_steps = self.args.max_steps if self.args.max_steps > 0 else None
        plan = make_plan(
            with_max_steps(request, max_steps),
            request.data or self.data,
            epochs=self.args.num_train_epochs,
            batch_size=self.args.train_batch_size,
            accumulation=self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.request_seed(),
        )
        args = copy.copy(self.args)
        args.max_steps = plan.steps
        args.learning_rate = (request.learning_rate or self.args.learning_rate) * request.learning_rate_scale
        args.save_strategy = SaveStrategy.NO
        if request.weight_decay is not None:
            args.weight_decay = request.weight_decay
        if request.alignment is not None and args.fp16:
            raise BackendError(
                "gradient alignment does not work with fp16's scaled gradients; use bf16=True or float32"
            )
        aligner = make_aligner(self, request, plan)
        watch = Watch(request, plan)
        with closing(aligner), self.part_to_train(request) as network, _own_forward(network):
            if self._resumed is None:
                watch.snapshot(self, 0)
            phase = Phase(self, request, plan, watch, aligner, network, self.collator(request))
            self.run_phase(phase, args)
        if not self.sharded:
            self.model.to(self.device)
        watch.settle(self)
        return finished(watch, aligner)

    def run_phase(self, phase: Phase, args: TrainingArguments) -> None:
        """Train one phase under the arguments made for it."""
        if not self.zero:
            _PhaseTrainer(phase, args).train()
            return
        for_one_phase(args)
        trainer = _PhaseTrainer(phase, args)
        with lent(trainer, phase.network):
            trainer.train()


class _PhaseTrainer(OnePhase, Trainer):
    """One training request, run by the Hugging Face loop."""

    def __init__(self, phase: Phase, args: TrainingArguments) -> None:
        self.phase = phase
        super().__init__(
            model=phase.network,
            args=args,
            train_dataset=Positions(phase.plan),
            data_collator=_first,
            processing_class=phase.driver.tokenizer,
            callbacks=[_Begin(self), StepDone(self)],
        )
        refuse_launcher(self, zero=self._zero)
        # Our weights already divide by the size of the whole step, over micro-batches and ranks.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True


class _Begin(TrainerCallback):
    def __init__(self, trainer: _PhaseTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._trainer.phase is not None
        self._trainer.phase.begin(self._trainer)
        if self._trainer._zero:
            before_step(self._trainer.deepspeed, self._trainer.backward_done)
        state.global_step = self._trainer.phase.watch.steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # the bar is made by a callback that comes after this one
        assert self._trainer.phase is not None
        name_bar(self._trainer, self._trainer.phase.request.name, self._trainer.phase.plan.steps)


@contextlib.contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Give the model its forward back: accelerate leaves one under autocast, and every training would add another."""
    own = vars(model).get("forward")
    try:
        yield
    finally:
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        if own is not None:
            model.forward = own


def _first(rows: list[Any]) -> Any:
    """Stand-in collator: batches are collated by the loader this trainer makes itself."""
    return rows


def _of_a_part(request: Request) -> bool:
    """Whether something else runs, or less is trained, than the whole model."""
    if isinstance(request, Train):
        return (request.network, request.trainable) != ("full", "all")
    return getattr(request, "network", None) is not None


def refuse_launcher(trainer: Any, *, zero: bool = False) -> None:
    """Refuse what `accelerate launch` may have asked for where the arguments do not say it."""
    if trainer.is_deepspeed_enabled and not zero:
        raise BackendError(
            "DeepSpeed does not drive a defended trainer of your own: launch it with DDP, or train by asepsis.defend(args=...)"
        )
    if trainer.is_fsdp_enabled:
        raise BackendError(f"accelerate's FSDP spreads the model too late, rows are scored before; {WAY_OUT}")


def _refuse(args: TrainingArguments) -> None:
    """Refuse launch strategies under which gradients cannot be turned in ``training_step``."""
    if getattr(args, "fsdp", None):
        raise BackendError(f"fsdp= spreads the model too late, rows are scored before; {WAY_OUT}")
    if args.n_gpu > 1:
        raise BackendError(
            "several GPUs in one process (DataParallel) are not supported; start with torchrun"
        )
