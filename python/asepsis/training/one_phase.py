"""One training request inside a Hugging Face Trainer, of any class: what a defense changes of a training, as a mixin.

Two things a Trainer would otherwise do are undone here. It drops every column the model's ``forward`` does not name,
the sample id first; and its ``on_pre_optimizer_step`` fires after clipping, so whatever changes gradients has to be
done at the end of ``training_step``; under DeepSpeed, which takes its step in there, before that (:mod:`.zero`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback

from asepsis.core.losses import coefficients, group_totals
from asepsis.core.phases import Train
from asepsis.training.align import Aligner
from asepsis.training.collate import Batch
from asepsis.training.driver import Driver, derive_seed
from asepsis.training.forward import check_targets, mean_losses, weighted_loss
from asepsis.training.loop import Watch, group_means, rate, steer
from asepsis.training.middle import Middle
from asepsis.training.plan import Plan
from asepsis.training.shards import average_gradients
from asepsis.training.zero import whole_gradients

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object  # stands before the Trainer class it is mixed into

_FIELDS = ("labels", "sample_id", "isolated", "count", "weight")


@dataclass
class Phase:
    """What is being trained, and where it stands.

    Attributes
    ----------
    driver, request, plan, watch, aligner, network
        As in :class:`asepsis.training.loop.LoopDriver`.
    collate : callable
        Makes a :class:`Batch` of ``(position, isolated)`` pairs.
    mean, apart : Tensor
        Mean losses of the running step, of ordinary and of isolated rows.
    micro : int
        Micro-batches of the running step that are done, on this rank.
    """

    driver: Driver
    request: Train
    plan: Plan
    watch: Watch
    aligner: Aligner | None
    network: nn.Module
    collate: Callable[[list[tuple[int, bool]]], Batch]
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    apart: Tensor = field(default_factory=lambda: torch.zeros(()))
    micro: int = 0
    middle: Middle | None = None

    def begin(self, trainer: Any) -> None:
        """Take up the training where a killed one was, once the trainer has its optimizer."""
        self.middle = Middle(
            self.driver,
            self.request,
            self.network,
            trainer.optimizer,
            self.watch,
            self.aligner,
            trainer.lr_scheduler,
        )
        self.middle.take_up()

    def step_done(self) -> bool:
        """Report a finished step to the watch; return whether training should end."""
        driver, watch = self.driver, self.watch
        watch.observe(self.mean, self.apart)
        driver.progress(self.request.name, watch.steps, self.plan.steps)
        watch.snapshot(driver, watch.steps)
        driver.count_batch()
        if not watch.should_stop and self.middle is not None:
            self.middle.save_if_due()
        return watch.should_stop


class OnePhase(_Base):
    """A Trainer whose training is a :class:`Phase` while it has one, and its own otherwise."""

    phase: Phase | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches come from the plan; the default would shuffle by itself and drop the sample id.

        Ranks take turns here. accelerate's sharding drops batches where one is shorter than the others.
        """
        phase = self.phase
        if phase is None:
            return super().get_train_dataloader()
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return DataLoader(
            Positions(phase.plan),
            batch_sampler=_PlanSampler(phase.plan, rank, ranks, phase.watch),
            collate_fn=lambda rows: _flat(phase.collate(rows)),
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Use the user's schedule, unless the request names its own decay or warm-up."""
        phase = self.phase
        warmup, decay = (0.0, None) if phase is None else (phase.request.warmup, phase.request.decay_steps)
        if phase is None or (decay is None and not warmup) or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        chosen: Any = self.optimizer if optimizer is None else optimizer
        steps = phase.plan.steps if decay is None else decay
        self.lr_scheduler = LambdaLR(chosen, lambda t: rate(t, decay=steps, warmup=warmup))
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Collect the micro-batches of a step and weigh their samples over all of them, and over all ranks."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        phase = self.phase
        if phase is None:
            return samples, items
        if samples:
            here = torch.stack([group_totals(s["count"], s["isolated"]) for s in samples]).sum(dim=0)
            totals = self.accelerator.reduce(here.to(device), "sum").cpu()
            check_targets(totals)
            # DDP averages gradients over ranks; a mean over the whole step wants their sum.
            ranks = self.accelerator.num_processes
            for sample in samples:
                sample["weight"] = coefficients(sample["count"], sample["isolated"], totals) * ranks
        phase.mean = phase.apart = torch.zeros((), device=device)
        phase.micro = 0
        if samples and phase.aligner is not None:
            phase.aligner.begin(phase.watch.steps, attach=not self._zero)
        return samples, torch.tensor(1, device=device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - Trainer's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Per-sample losses, shaped by the request's rule; of rows that are evaluated, what the trainer makes of them."""
        phase = self.phase
        if phase is None or "weight" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        batch = Batch(**{name: inputs.pop(name) for name in _FIELDS}, inputs=inputs)
        torch.manual_seed(derive_seed(phase.driver.request_seed(), phase.watch.steps, phase.micro))
        loss: Tensor
        if phase.aligner is None:
            losses = mean_losses(model, batch)
            loss = weighted_loss(losses, batch, phase.request.loss)
        else:
            losses, loss = phase.aligner.losses(model, batch, self._piece(phase), phase.request.loss)
        ordinary, isolated = group_means(losses, batch)
        phase.mean, phase.apart = phase.mean + ordinary, phase.apart + isolated
        return loss

    def _piece(self, phase: Phase) -> int:
        """Return the place of the running micro-batch in its step, over all ranks: ranks take turns in the plan."""
        at: int = phase.micro * self.accelerator.num_processes + self.accelerator.process_index
        return at

    @property
    def _sharded(self) -> bool:
        return self.phase is not None and getattr(self.phase.driver, "sharded", False)

    @property
    def _zero(self) -> bool:
        return self.phase is not None and getattr(self.phase.driver, "zero", False)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Leave to :meth:`training_step` what the base's hooks do: they want an average, which gloo cannot make."""
        if not self._sharded:
            super()._sync_replicated_trainable_parameters(model)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch, forward and backward, and what is done after it."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        # DeepSpeed has taken its step by now, and called `backward_done` before it.
        if self.phase is not None and not (self._zero and self.accelerator.sync_gradients):
            self.backward_done()
        return loss

    def backward_done(self) -> None:
        """Turn the whole step's gradient by the rule's sign: after the last micro-batch, before clipping."""
        phase = self.phase
        assert phase is not None
        aligner = phase.aligner
        if aligner is not None:
            with self.compute_loss_context_manager():
                aligner.finish(self._piece(phase))
        phase.micro += 1
        if not self.accelerator.sync_gradients:
            return
        ranks = self.accelerator.num_processes
        phase.mean = self.accelerator.reduce(phase.mean, "mean")
        phase.apart = self.accelerator.reduce(phase.apart, "mean")
        if self._sharded:
            average_gradients(phase.network, ranks)
        parameters = [p for p in phase.network.parameters() if p.requires_grad]
        direction = phase.request.loss.direction(phase.mean)
        with contextlib.ExitStack() as stack:
            if self._zero and (direction is not None or aligner is not None):
                stack.enter_context(
                    whole_gradients(parameters, None if aligner is None else aligner.gradients)
                )
            steer(parameters, direction)
            if aligner is not None:
                aligner.align(over_ranks=ranks > 1)


class StepDone(TrainerCallback):
    """Tells the phase of a trainer that a step is done."""

    def __init__(self, trainer: OnePhase) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Stop where the phase says so."""
        if self._trainer.phase is not None:
            control.should_training_stop |= self._trainer.phase.step_done()
        return control


def _flat(batch: Batch) -> dict[str, Any]:
    return {**batch.inputs, **{name: getattr(batch, name) for name in _FIELDS}}


class Positions(Dataset[tuple[int, bool]]):
    """Rows of a plan: hands the sampler's pairs to the collator as they are."""

    def __init__(self, plan: Plan) -> None:
        self._n = len(plan.lengths)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, pair: Any) -> tuple[int, bool]:
        return tuple(pair)


class _PlanSampler(Sampler[Any]):
    """Every ``ranks``-th batch of a plan, whose length is a multiple of ``ranks``, from where a training stands."""

    def __init__(self, plan: Plan, rank: int, ranks: int, watch: Watch) -> None:
        self._plan, self._rank, self._ranks, self._watch = plan, rank, ranks, watch

    def __len__(self) -> int:
        return len(self._plan) // self._ranks

    def __iter__(self) -> Iterator[Any]:
        done = self._watch.steps * self._plan.accumulation
        return itertools.islice(self._plan, done + self._rank, None, self._ranks)
