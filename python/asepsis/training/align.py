"""Two gradients per step, of the batch and of clean reference rows, and their alignment before clipping.

Both gradients live in one flat float32 arena each, of which the parameters' ``.grad`` are views: the rule is then a few
vector operations whatever the number of tensors, ranks exchange one buffer, and nothing is copied.

*One pass* runs batch and reference rows through the model together. No layer mixes samples and the base is frozen, so
only the products that make the low-rank factors' gradients have to be cut between the two groups; the layers do that
themselves (:class:`asepsis.core.lora.RowGroups`). *Two passes* is the reference it is held to, and what runs where
anything else is trained.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asepsis.core.alignment import Alignment
from asepsis.core.lora import RowGroups, layers
from asepsis.core.losses import LossRule, coefficients, group_totals
from asepsis.errors import BackendError, ConfigError, DataError, DefenseInert
from asepsis.kernels import Segments, gradient_alignment
from asepsis.training.collate import Batch, joined
from asepsis.training.forward import mean_losses, weighted_loss
from asepsis.training.plan import Plan

log = logging.getLogger("asepsis")


@dataclass(frozen=True)
class _Schedule:
    steps_per_epoch: float
    epochs: float


class Aligner:
    """Carries out one training request's gradient alignment.

    Call :meth:`begin` before a step's first micro-batch, :meth:`backward` for each, :meth:`align` after the last.

    Parameters
    ----------
    alignment : Alignment
    model : Module
        Unwrapped; its trainable parameters are float32.
    collate : callable
        Makes batches of ``(position, isolated)`` pairs of the reference rows.
    pad_token_id : int
        What fills up the shorter of batch and reference rows.
    epochs, steps : float, int
        Length of the training.
    micro_batches : int
        Micro-batches per optimizer step over all ranks; the reference batch is divided among them.
    seed : int
        Of the order of the reference rows.
    """

    def __init__(
        self,
        alignment: Alignment,
        model: nn.Module,
        collate: Callable[[Sequence[tuple[int, bool]]], Batch],
        *,
        pad_token_id: int,
        epochs: float,
        steps: int,
        micro_batches: int,
        seed: int,
    ) -> None:
        self.alignment = alignment
        self.model = model
        self.pad_token_id = pad_token_id
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        _check(self.parameters)
        self.device = self.parameters[0].device
        sizes = [p.numel() for p in self.parameters]
        self.raw = torch.zeros(sum(sizes), device=self.device)
        self.reference = torch.zeros_like(self.raw)
        self.segments = Segments.of(sizes, self.device)
        self.gradients = _views(self.raw, self.parameters)
        self._aside = _views(self.reference, self.parameters)
        self.groups = self._choose_passes()
        self._schedule = _Schedule(steps / max(epochs, 1e-9), epochs)
        self._collate = collate
        # Laid out like the training rows: each once before any comes again, in batches of like length, which keeps the
        # padding of a concatenated pass low. Batches are of one size, or the last of each pass would be a few rows, whose
        # gradient is mostly noise.
        lengths = np.array([len(text) for text in alignment.reference.texts])
        rows, none = np.arange(len(lengths)), np.empty(0, np.int64)
        size = math.ceil(len(rows) / math.ceil(len(rows) / alignment.batch_size))
        self._batches = iter(Plan(steps, 1, rows, none, lengths, size, seed))
        self._micro_batches = micro_batches
        self._step = -1
        self._pieces: list[Batch | None] = []
        self.reference_loss = torch.zeros((), device=self.device)
        self._stats: Tensor | None = None

    def begin(self, step: int, *, attach: bool = True) -> None:
        """Draw the step's reference rows and empty both arenas.

        ``attach`` makes ``.grad`` of the parameters views of the first one; otherwise :attr:`gradients` have to be filled
        before :meth:`align`.
        """
        for _ in range(step - self._step):
            rows = next(self._batches)
        self._step = step
        self.raw.zero_()
        self.reference.zero_()
        for parameter, view in zip(self.parameters, self.gradients, strict=True):
            # whoever zeroes gradients between steps may have detached it
            parameter.grad = view if attach else None
        ends = [len(rows) * i // self._micro_batches for i in range(self._micro_batches + 1)]
        parts = [rows[start:end] for start, end in pairwise(ends)]
        self._pieces = [self._collate(part) if part else None for part in parts]
        present = [piece for piece in self._pieces if piece is not None]
        totals = torch.stack([group_totals(b.count, b.isolated) for b in present]).sum(dim=0)
        if float(totals.sum()) == 0:
            raise DefenseInert("the reference rows have no target token; raise max_length")
        for piece in present:
            piece.weight = coefficients(piece.count, piece.isolated, totals)
        self.reference_loss = torch.zeros((), device=self.device)

    def piece(self, index: int) -> Batch | None:
        """Return the reference rows that go with micro-batch ``index`` of the step, counted over all ranks."""
        return self._pieces[index]

    def losses(self, model: nn.Module, batch: Batch, index: int, rule: LossRule) -> tuple[Tensor, Tensor]:
        """Return the batch's per-sample losses [B], and what to call ``backward`` on.

        In one pass that includes the reference rows; call :meth:`finish` after the backward pass. ``model`` may be the
        wrapped one, whose hooks exchange gradients.
        """
        piece = self.piece(index)
        if piece is None or self.groups is None:
            losses = mean_losses(model, batch)
            return losses, weighted_loss(losses, batch, rule)
        piece = piece.to(self.device)
        n, m = len(batch.count), len(piece.count)
        self.groups.samples, self.groups.total = n, n + m
        both = mean_losses(model, joined(batch, piece, pad_token_id=self.pad_token_id))
        losses, clean = both[:n], both[n:]
        apart = (piece.weight * clean).sum()
        self.reference_loss = self.reference_loss + apart.detach()
        return losses, weighted_loss(losses, batch, rule) + apart

    def finish(self, index: int) -> None:
        """Complete a micro-batch after its backward pass: in two passes, the reference rows' turn."""
        if self.groups is not None:
            self.groups.samples = None
            return
        piece = self.piece(index)
        if piece is None:
            return
        piece = piece.to(self.device)
        loss = (piece.weight * mean_losses(self.model, piece)).sum()
        self.reference_loss = self.reference_loss + loss.detach()
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        pairs = [(a, g) for a, g in zip(self._aside, found, strict=True) if g is not None]
        torch._foreach_add_([a for a, _ in pairs], [g for _, g in pairs])

    def align(self, *, over_ranks: bool = False) -> None:
        """Replace the step's gradient, in place, without a host synchronization.

        ``over_ranks`` adds up the reference gradient of all processes first: hooks exchange the batch's only.
        """
        if over_ranks:
            torch.distributed.all_reduce(self.reference)
            torch.distributed.all_reduce(self.reference_loss)
        a = self.alignment
        epoch = int((self._step + 1e-9) / self._schedule.steps_per_epoch)
        stats = gradient_alignment(
            self.raw,
            self.reference,
            self.segments,
            rule=a.rule,
            granularity=a.granularity,
            raw_weight=0.0,
            raw_weight_below=a.raw_weight_below(epoch, self._schedule.epochs),
            reference_loss=self.reference_loss,
            min_reference_loss=a.min_reference_loss,
            min_reference_norm=a.min_reference_norm,
        )
        self._stats = stats if self._stats is None else self._stats + stats

    def report(self) -> dict[str, Any]:
        """Return means over the steps, JSON-ready. The one place where the host waits for the device.

        Raises
        ------
        DefenseInert
            No step had a gradient to align: every reference gradient was zero or not finite.
        """
        if self._stats is None:
            raise DefenseInert("gradient alignment was asked for and no step was taken")
        steps, n = self._step + 1, len(self.parameters)
        totals = self._stats.tolist()
        # fields of AlignmentStats, as means over the steps
        full, weight, norm, loss, conflict, cosine, raw, broken = (total / steps for total in totals)
        if sum(totals[-2:]) >= n * steps:
            raise DefenseInert(
                "no tensor of any step could be aligned: the reference rows gave no finite gradient that is not zero"
            )
        if weight >= 1:
            log.warning(
                "alignment: below the gate in every step, so every gradient was taken raw: undefended"
            )
        if broken > 0:
            log.warning("alignment: %.3g tensors a step had no finite gradient and stood still", broken)
        return {
            "passes": "one" if self.groups is not None else "two",
            "tensors": n,
            "share_of_steps_above_gate": full,
            "raw_weight": weight,
            "reference_loss": loss if math.isfinite(loss) else None,
            "reference_norm": norm,
            "share_in_conflict": conflict,
            "cosine": cosine,
            "kept_raw_tensors": raw,
            "non_finite_tensors": broken,
        }

    def state(self) -> dict[str, Any]:
        """Return what :meth:`put_state` needs to go on."""
        return {"step": self._step, "stats": self._stats}

    def put_state(self, state: dict[str, Any]) -> None:
        """Go on where another aligner of the same training stood."""
        while self._step < state["step"]:
            next(self._batches)
            self._step += 1
        self._stats = None if state["stats"] is None else state["stats"].to(self.device)

    def close(self) -> None:
        """Let go of the arenas: the parameters get ordinary gradients again."""
        for parameter in self.parameters:
            parameter.grad = None
        if self.groups is not None:
            self.groups.samples = None
            self.groups.aside = {}

    def _choose_passes(self) -> RowGroups | None:
        """Return the layers' common groups where one pass can tell the two gradients apart, None otherwise."""
        found = dict(layers(self.model))
        of_layers = {p for layer in found.values() for p in layer.parameters() if p.requires_grad}
        others = len(set(self.parameters) - of_layers)
        wanted = self.alignment.passes
        if wanted == "two" or (wanted == "auto" and others):
            if others:
                log.info(
                    "alignment takes two passes: %d trained tensors stand outside low-rank layers", others
                )
            return None
        if others:
            raise ConfigError(
                f"passes='one' needs that only multi-scale layers are trained; {others} tensors stand outside them"
            )
        groups = next(iter(found.values())).groups
        groups.aside = dict(zip(self.parameters, self._aside, strict=True))
        return groups


def check_reference(reference: Any, data: Any) -> None:
    """Raise ``DataError`` unless the reference rows are of the run's task and classes."""
    if reference.task != data.task:
        raise DataError(f"the clean reference is for {reference.task}, the data is for {data.task}")
    if reference.n_classes is not None and reference.labels.max() >= data.n_classes:
        raise DataError(
            f"the clean reference has label {int(reference.labels.max())}, the data has {data.n_classes} classes"
        )


def _views(arena: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = torch.split(arena, [p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


def _check(parameters: list[nn.Parameter]) -> None:
    if not parameters:
        raise DefenseInert("no parameter is trained: there is no gradient to align")
    kinds = {p.dtype for p in parameters}
    if kinds != {torch.float32}:
        raise BackendError(
            f"gradient alignment needs float32 trained parameters, got {', '.join(sorted(map(str, kinds)))}; "
            "load the model in float32 and use bf16 autocast, or train low-rank layers"
        )
    if len({p.device for p in parameters}) > 1:
        raise BackendError("gradient alignment needs all trained parameters on one device")
