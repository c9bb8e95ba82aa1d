"""The plain-torch driver: the reference for the Trainer driver."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from asepsis.core.losses import coefficients, group_totals
from asepsis.core.phases import Checks, Ids, Score, Train, Trained
from asepsis.core.quality import Quality
from asepsis.data import Data
from asepsis.errors import BackendError, DefenseInert
from asepsis.training.align import Aligner, check_reference
from asepsis.training.collate import Batch, Collator
from asepsis.training.driver import Driver, Progress, derive_seed, silent
from asepsis.training.forward import autocast, check_targets, mean_losses, resolve_precision, weighted_loss
from asepsis.training.middle import Middle
from asepsis.training.plan import Plan, make_plan
from asepsis.training.resume import Journal
from asepsis.training.settings import Settings
from asepsis.training.shards import is_sharded, local


class LoopDriver(Driver):
    """Train with a loop that fits on a page: AdamW, linear decay, clipping, accumulation, autocast."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        data: Data,
        settings: Settings,
        *,
        progress: Progress = silent,
        keep_stages: bool = False,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            data,
            seed=settings.seed,
            max_length=settings.max_length,
            eval_batch_size=settings.eval_batch_size,
            progress=progress,
            keep_stages=keep_stages,
            journal=journal,
        )
        if is_sharded(model):
            raise BackendError(
                "the model's weights are spread over processes, and the plain loop is one; pass args=TrainingArguments(...)"
            )
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.dtype = resolve_precision(settings.precision, self.device)
        self.model.to(self.device)

    def train(self, request: Train) -> Trained:
        """See :meth:`Driver.train`."""
        s = self.settings
        plan = make_plan(
            with_max_steps(request, s.max_steps),
            request.data or self.data,
            epochs=s.epochs,
            batch_size=s.batch_size,
            accumulation=s.accumulation,
            seed=self.request_seed(),
        )
        collate = self.collator(request)
        decay = s.weight_decay if request.weight_decay is None else request.weight_decay
        aligner = make_aligner(self, request, plan)
        watch = Watch(request, plan)
        with closing(aligner), self.part_to_train(request) as network:
            parameters = [p for p in network.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=s.learning_rate, weight_decay=decay, fused=True)
            self._steps(network, request, plan, collate, optimizer, watch, aligner)
        watch.settle(self)
        return finished(watch, aligner)

    def _steps(
        self,
        network: nn.Module,
        request: Train,
        plan: Plan,
        collate: Collator,
        optimizer: torch.optim.Optimizer,
        watch: Watch,
        aligner: Aligner | None,
    ) -> None:
        """Do the optimizer steps of a plan."""
        s = self.settings
        parameters = [p for p in network.parameters() if p.requires_grad]
        peak = (request.learning_rate or s.learning_rate) * request.learning_rate_scale
        decay = plan.steps if request.decay_steps is None else request.decay_steps
        middle = Middle(self, request, network, optimizer, watch, aligner)
        if not middle.take_up():
            watch.snapshot(self, 0)
            middle.save_if_due()
        network.train()
        batches = itertools.islice(plan, watch.steps * s.accumulation, None)
        for step in range(watch.steps, plan.steps):
            micro = weigh([collate(next(batches)) for _ in range(s.accumulation)])
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, decay=decay, warmup=request.warmup)
            mean, apart = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
            if aligner is not None:
                aligner.begin(step)
            for index, batch in enumerate(micro):
                torch.manual_seed(derive_seed(self.request_seed(), step, index))
                moved = batch.to(self.device)
                losses = self._backward(network, moved, index, request, aligner)
                ordinary, isolated = group_means(losses, moved)
                mean, apart = mean + ordinary, apart + isolated
            steer(parameters, request.loss.direction(mean))
            if aligner is not None:
                aligner.align()
            if s.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, s.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.progress(request.name, step + 1, plan.steps)
            watch.observe(mean, apart)
            watch.snapshot(self, step + 1)
            if watch.should_stop:
                break
            self.count_batch()
            middle.save_if_due()

    def _backward(
        self, network: nn.Module, batch: Batch, index: int, request: Train, aligner: Aligner | None
    ) -> Tensor:
        """Add one micro-batch's gradient; return its per-sample losses [B]."""
        with autocast(self.device, self.dtype):
            if aligner is None:
                losses = mean_losses(network, batch)
                loss = weighted_loss(losses, batch, request.loss)
            else:
                losses, loss = aligner.losses(network, batch, index, request.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if aligner is not None:
            with autocast(self.device, self.dtype):
                aligner.finish(index)
        return losses


def make_aligner(driver: Driver, request: Train, plan: Plan) -> Aligner | None:
    """Return what aligns this request's gradients; None where it does not ask for that."""
    if request.alignment is None:
        return None
    check_reference(request.alignment.reference, driver.data)
    return Aligner(
        request.alignment,
        driver.model,
        driver.rows_of(request.alignment.reference),
        pad_token_id=driver.tokenizer.pad_token_id,
        epochs=plan.epochs,
        steps=plan.steps,
        micro_batches=plan.accumulation,
        seed=derive_seed(driver.request_seed(), 1),
    )


@contextlib.contextmanager
def closing(aligner: Aligner | None) -> Iterator[None]:
    """Let the aligner go however the training ends: the model can be used after running out of memory, too."""
    try:
        yield
    finally:
        if aligner is not None:
            aligner.close()


def finished(watch: Watch, aligner: Aligner | None) -> Trained:
    """Return the answer to a training request."""
    result = watch.result()
    return result if aligner is None else replace(result, alignment=aligner.report())


def resolve_device(device: str) -> torch.device:
    """Return the device; ``"auto"`` is CUDA where there is a GPU, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise BackendError(f"device {device!r} is not known to torch") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device={device!r} was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'"
        )
    return wanted


def with_max_steps(request: Train, max_steps: int | None) -> Train:
    """Apply the user's ``max_steps`` to a request that leaves its length to the user."""
    if max_steps is None or request.steps is not None or request.epochs is not None:
        return request
    return replace(request, steps=max_steps)


def rate(step: int, *, decay: int, warmup: float) -> float:
    """Return the factor on the peak learning rate at a step: a rise over ``warmup * decay`` steps, then a fall to zero."""
    if not decay:
        return 1.0
    rise = math.ceil(warmup * decay)
    if step < rise:
        return (step + 1) / (rise + 1)
    return max(0.0, (decay - step) / (decay - rise))


def weigh(step: list[Batch]) -> list[Batch]:
    """Fill in every sample's weight once all micro-batches of the step are at hand."""
    totals = torch.stack([group_totals(b.count, b.isolated) for b in step]).sum(dim=0)
    check_targets(totals)
    for batch in step:
        batch.weight = coefficients(batch.count, batch.isolated, totals)
    return step


def group_means(losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return this micro-batch's share of the step's mean loss: of ordinary rows, of isolated rows."""
    weighted = losses.detach() * batch.weight
    return weighted[~batch.isolated].sum(), weighted[batch.isolated].sum()


def steer(parameters: list[nn.Parameter], direction: Tensor | None) -> None:
    """Multiply the step's gradient by the rule's direction, before clipping and without a host synchronization."""
    if direction is None:
        return
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, direction.to(grads[0].device, grads[0].dtype))


class Watch:
    """Keeps what a training has to answer for: snapshots, the latest losses, stop rules, the best epoch or state.

    Losses stay on their device. Reading one makes the host wait, so on a GPU they are read every few steps only,
    unless a stop rule asks for them.
    """

    _SMOOTH = 5  # steps in the running mean of the isolated loss
    _READ_EVERY = 16
    _STATE = ("steps", "losses", "isolated", "should_stop", "validated", "kept_epoch", "_kept", "_sum")

    def __init__(self, request: Train, plan: Plan) -> None:
        self.request = request
        self.epoch_ends = [
            math.ceil(plan.steps * min(1.0, epoch / plan.epochs) - 1e-9)
            for epoch in range(1, math.ceil(plan.epochs - 1e-9) + 1)
        ]
        self.last = plan.steps
        self._own = request.network if isinstance(request.network, nn.Module) else None
        self.validated: list[Quality] = []
        self.kept_epoch: int | None = None
        self._kept: dict[str, Tensor] = {}
        self.steps = 0
        self.losses: list[Tensor] = []
        self.isolated: list[Tensor] = []
        self.should_stop = False
        self._sum = torch.zeros(())  # of all losses: not finite from the first that is not

    def snapshot(self, driver: Driver, step: int) -> None:
        """Record an evaluation pass if one is due after ``step``."""
        if step in self.request.snapshots and self.request.records is not None:
            name = f"{self.request.name}: losses after step {step}"
            losses = driver.score(Score(name=name))
            self.request.records.snapshot(step, losses)
            if driver.journal is not None:
                driver.journal.snapshots.append((step, losses))
        if self.request.validation is not None and (step == 0 or step in self.epoch_ends):
            self._validate(driver, self.request.validation, step)
        checks = self.request.checks
        if checks is not None and step > 0 and (step % checks.every == 0 or step == self.last):
            self._check_up(driver, checks, step)

    def settle(self, driver: Driver) -> None:
        """Put the weights kept back: of the best epoch, or where checks found them best."""
        if self._kept:
            driver.put(self._kept, network=self._own)

    def _check_up(self, driver: Driver, checks: Checks, step: int) -> None:
        """Run the script's look at the network, and do what it says."""
        verdict = driver.converse(checks.look(step))
        if verdict in ("keep", "take"):
            self._kept = driver.weights(network=self._own)
        self.should_stop = verdict in ("take", "back")

    def _validate(self, driver: Driver, rows: Ids, step: int) -> None:
        losses = driver.score(Score(name="", rows=rows))
        quality = Quality.of(losses.total, losses.count, losses.correct, driver.data.positions(rows))
        best = self.validated[self.kept_epoch] if self.kept_epoch is not None else None
        self.validated.append(quality)
        if step > 0 and (best is None or quality.better_than(best)):
            self._kept, self.kept_epoch = driver.weights(), len(self.validated) - 1

    def observe(self, mean: Tensor, isolated: Tensor) -> None:
        """Take note of one finished step's mean losses, 0-dim, of ordinary and of isolated rows."""
        self.steps += 1
        self.losses = [*self.losses[-self._SMOOTH + 1 :], mean]
        self._sum = self._sum.to(mean.device) + mean
        if mean.device.type == "cpu" or self.steps % self._READ_EVERY == 0:
            self._check()
        if self.request.isolated is not None:
            self.isolated = [*self.isolated[-self._SMOOTH + 1 :], isolated]
            limit = self.request.stop_above
            full = len(self.isolated) == self._SMOOTH
            self.should_stop = limit is not None and full and _mean(self.isolated) > limit

    def state(self) -> dict[str, Any]:
        """Return what :meth:`put_state` needs to go on."""
        return {name: getattr(self, name) for name in self._STATE}

    def put_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where another watch of the same training stood."""
        vars(self).update({name: state[name] for name in self._STATE})
        self.losses = [loss.to(device) for loss in self.losses]
        self.isolated = [loss.to(device) for loss in self.isolated]

    def result(self) -> Trained:
        """Return the answer to the request."""
        self._check()
        apart = _mean(self.isolated) if self.isolated else None
        return Trained(
            self.steps,
            _mean(self.losses),
            apart,
            self.should_stop,
            validated=tuple(self.validated),
            kept_epoch=self.kept_epoch,
        )

    def _check(self) -> None:
        if not math.isfinite(float(self._sum)):
            raise DefenseInert(
                f"{self.request.name}: the loss was not finite by step {self.steps}; lower the learning rate"
            )


def _mean(losses: list[Tensor]) -> float:
    return float(torch.stack(losses).mean())
