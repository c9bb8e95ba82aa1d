"""The Hugging Face driver: one :class:`transformers.Trainer` per training request.

Two things a Trainer would otherwise do are undone here. It drops every column the model's ``forward`` does not name,
the sample id first; and its ``on_pre_optimizer_step`` fires after clipping, so whatever changes gradients has to be
done at the end of ``training_step``.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from asepsis.core.losses import coefficients, group_totals
from asepsis.core.phases import Train, Trained
from asepsis.data import Data
from asepsis.errors import BackendError
from asepsis.training.align import Aligner
from asepsis.training.collate import Batch
from asepsis.training.driver import Driver, Progress, derive_seed, silent
from asepsis.training.forward import check_targets, mean_losses, weighted_loss
from asepsis.training.loop import (
    Watch,
    closing,
    finished,
    group_means,
    make_aligner,
    rate,
    steer,
    with_max_steps,
)
from asepsis.training.plan import Plan, make_plan


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
    ) -> None:
        _refuse(args)
        super().__init__(
            model,
            tokenizer,
            data,
            seed=args.seed,
            max_length=max_length,
            eval_batch_size=args.per_device_eval_batch_size,
            progress=progress,
            keep_stages=keep_stages,
        )
        self.args = args
        self.device = args.device
        self.dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self.model.to(self.device)

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
        aligner = make_aligner(self, request, plan, max_length=self.max_length)
        watch = Watch(request, plan)
        with closing(aligner), self.part_to_train(request) as network, _own_forward(network):
            watch.snapshot(self, 0)
            _PhaseTrainer(self, network, args, request, plan, watch, aligner).train()
        self.model.to(self.device)
        watch.settle(self)
        return finished(watch, aligner)


class _PhaseTrainer(Trainer):
    """One training request, run by the Hugging Face loop."""

    def __init__(
        self,
        driver: TrainerDriver,
        network: nn.Module,
        args: TrainingArguments,
        request: Train,
        plan: Plan,
        watch: Watch,
        aligner: Aligner | None,
    ) -> None:
        self._driver, self._request, self._plan, self._watch = driver, request, plan, watch
        self._aligner = aligner
        self._collate = driver.collator(request)
        self._mean = self._apart = torch.zeros(())
        self._micro = 0
        super().__init__(
            model=network,
            args=args,
            train_dataset=_Positions(plan),
            data_collator=_first,
            processing_class=driver.tokenizer,
            callbacks=[_WatchCallback(self)],
        )
        # Our weights already divide by the size of the whole step, over micro-batches and ranks.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches come from the plan; the default would shuffle by itself and drop the sample id.

        Ranks take turns here. accelerate's sharding drops batches where one is shorter than the others.
        """
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return DataLoader(
            _Positions(self._plan),
            batch_sampler=_PlanSampler(self._plan, rank, ranks),
            collate_fn=self._collate_batch,
        )

    def _collate_batch(self, rows: list[tuple[int, bool]]) -> dict[str, Any]:
        batch = self._collate(rows)
        return {
            **batch.inputs,
            "labels": batch.labels,
            "sample_id": batch.sample_id,
            "isolated": batch.isolated,
            "count": batch.count,
            "weight": batch.weight,
        }

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Use the user's schedule, unless the request names its own decay or warm-up."""
        warmup, decay = self._request.warmup, self._request.decay_steps
        if (decay is None and not warmup) or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        chosen: Any = self.optimizer if optimizer is None else optimizer
        steps = self._plan.steps if decay is None else decay
        self.lr_scheduler = LambdaLR(chosen, lambda t: rate(t, decay=steps, warmup=warmup))
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Collect the micro-batches of a step and weigh their samples over all of them, and over all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            here = torch.stack([group_totals(s["count"], s["isolated"]) for s in samples]).sum(dim=0)
            totals = self.accelerator.reduce(here.to(device), "sum").cpu()
            check_targets(totals)
            # DDP averages gradients over ranks; a mean over the whole step wants their sum.
            ranks = self.accelerator.num_processes
            for sample in samples:
                sample["weight"] = coefficients(sample["count"], sample["isolated"], totals) * ranks
        self._mean = self._apart = torch.zeros((), device=device)
        self._micro = 0
        if samples and self._aligner is not None:
            self._aligner.begin(self.state.global_step)
        return samples, torch.tensor(1, device=device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - Trainer's signature
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Per-sample losses, shaped by the request's rule."""
        inputs = dict(inputs)
        fields = {k: inputs.pop(k) for k in ("labels", "sample_id", "isolated", "count", "weight")}
        batch = Batch(inputs=inputs, **fields)
        torch.manual_seed(derive_seed(self._driver.request_seed(), self.state.global_step, self._micro))
        loss: Tensor
        if self._aligner is None:
            losses = mean_losses(model, batch)
            loss = weighted_loss(losses, batch, self._request.loss)
        else:
            losses, loss = self._aligner.losses(model, batch, self._piece(), self._request.loss)
        ordinary, isolated = group_means(losses, batch)
        self._mean, self._apart = self._mean + ordinary, self._apart + isolated
        return loss

    def _piece(self) -> int:
        """Return the place of the running micro-batch in its step, over all ranks: ranks take turns in the plan."""
        at: int = self._micro * self.accelerator.num_processes + self.accelerator.process_index
        return at

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Turn the whole step's gradient by the rule's sign: after the last micro-batch, before clipping."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._aligner is not None:
            with self.compute_loss_context_manager():
                self._aligner.finish(self._piece())
        self._micro += 1
        if self.accelerator.sync_gradients:
            self._mean = self.accelerator.reduce(self._mean, "mean")
            self._apart = self.accelerator.reduce(self._apart, "mean")
            steer(
                [p for p in model.parameters() if p.requires_grad], self._request.loss.direction(self._mean)
            )
            if self._aligner is not None:
                self._aligner.align(over_ranks=self.accelerator.num_processes > 1)
        return loss

    def step_done(self) -> bool:
        """Report a finished step to the watch; return whether training should end."""
        driver, watch = self._driver, self._watch
        watch.observe(self._mean, self._apart)
        driver.progress(self._request.name, watch.steps, self._plan.steps)
        watch.snapshot(driver, watch.steps)
        return watch.should_stop


class _WatchCallback(TrainerCallback):
    def __init__(self, trainer: _PhaseTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop |= self._trainer.step_done()
        return control


class _Positions(Dataset[tuple[int, bool]]):
    """Hands the sampler's pairs to the collator as they are."""

    def __init__(self, plan: Plan) -> None:
        self._n = len(plan.lengths)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, pair: Any) -> tuple[int, bool]:
        return tuple(pair)


class _PlanSampler(Sampler[Any]):
    """Every ``ranks``-th batch of a plan, whose length is a multiple of ``ranks``."""

    def __init__(self, plan: Plan, rank: int, ranks: int) -> None:
        self._plan, self._rank, self._ranks = plan, rank, ranks

    def __len__(self) -> int:
        return len(self._plan) // self._ranks

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._plan, self._rank, None, self._ranks)


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


def _refuse(args: TrainingArguments) -> None:
    """Refuse launch strategies under which gradients cannot be turned in ``training_step``."""
    if getattr(args, "deepspeed", None):
        raise BackendError(
            "DeepSpeed is not supported yet; use one process or DDP (torchrun, accelerate launch)"
        )
    if getattr(args, "fsdp", None):
        raise BackendError("FSDP is not supported yet; use one process or DDP (torchrun, accelerate launch)")
    if args.n_gpu > 1:
        raise BackendError(
            "several GPUs in one process (DataParallel) are not supported; start with torchrun"
        )
