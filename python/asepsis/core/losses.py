"""How per-sample losses become one step's gradient: mean, flooding / local gradient ascent, bounded ascent.

Every rule is written for a *step*, which may be spread over micro-batches and ranks. A rule says three things:
what happens to each sample's loss (:meth:`LossRule.shape`), which samples carry it (weights made by
:func:`coefficients`), and by what the whole step's gradient is multiplied once the step's mean loss is known
(:meth:`LossRule.direction`). The last is how a batch-mean sign survives accumulation exactly: the gradient of
``sign(m - gamma) * m`` is ``sign(m - gamma)`` times the gradient of ``m``, and the gradient of ``m`` is what the
micro-batches have summed up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asepsis.errors import ConfigError

Reduction = Literal["batch", "sample"]


@dataclass(frozen=True)
class LossRule:
    """Plain training: the mean of the per-sample losses."""

    def shape(self, losses: Tensor, isolated: Tensor) -> Tensor:
        """Return what is summed for each sample: ``losses`` [B] and ``isolated`` bool [B] to [B]."""
        return losses

    def direction(self, mean: Tensor) -> Tensor | None:
        """Return the factor for the step's gradient, given the step's mean loss over all ranks; None for one."""
        return None


@dataclass(frozen=True)
class Flooding(LossRule):
    """Keep the loss at ``gamma``: descend above it, ascend below it.

    Local gradient ascent ``sign(l - gamma) * l`` (Li et al., NeurIPS 2021, section 3) and flooding
    ``|l - b| + b`` have the same gradient at ``gamma = b`` and the same reduction, so they are one rule here.

    Parameters
    ----------
    gamma : float
        The level, on the scale of the loss (nats).
    reduction : {"batch", "sample"}
        ``"batch"`` takes the sign of the batch mean, as the authors' code does: the poisoned rows stay below the
        level, the others are held at it. ``"sample"`` takes the sign of each sample's loss, as the paper's
        equation reads: it pins the poisoned rows at the level like everybody's and destroys what isolation wants
        to see (measured on text).
    """

    gamma: float
    reduction: Reduction = "batch"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ConfigError(f"gamma must be positive and finite, got {self.gamma!r}")
        if self.reduction not in ("batch", "sample"):
            raise ConfigError(f"reduction must be 'batch' or 'sample', got {self.reduction!r}")

    def shape(self, losses: Tensor, isolated: Tensor) -> Tensor:
        """See :meth:`LossRule.shape`."""
        return losses if self.reduction == "batch" else (losses - self.gamma).abs() + self.gamma

    def direction(self, mean: Tensor) -> Tensor | None:
        """See :meth:`LossRule.direction`. Zero exactly at the level, like the sign."""
        return None if self.reduction == "sample" else torch.sign(mean - self.gamma)


@dataclass(frozen=True)
class BoundedAscent(LossRule):
    """Descend on ordinary rows and ascend on isolated rows until each isolated row's loss reaches ``max_loss``.

    Global gradient ascent (Li et al., NeurIPS 2021, section 3) with a bound: without it the isolated loss grows
    without end and takes the clean accuracy along.
    """

    max_loss: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_loss) and self.max_loss > 0):
            raise ConfigError(f"max_loss must be positive and finite, got {self.max_loss!r}")

    def shape(self, losses: Tensor, isolated: Tensor) -> Tensor:
        """See :meth:`LossRule.shape`."""
        return torch.where(isolated, -losses.clamp(max=self.max_loss), losses)


def group_totals(counts: Tensor, isolated: Tensor) -> Tensor:
    """Return the targets of ordinary and of isolated samples, float32 [2]; add them up over ranks."""
    n = counts.to(torch.float32)
    return torch.stack((n[~isolated].sum(), n[isolated].sum()))


def coefficients(counts: Tensor, isolated: Tensor, totals: Tensor) -> Tensor:
    """Weight of each sample so that a weighted sum of per-sample means is the mean over targets.

    The two groups are normalized apart: ``c_i = n_i / sum of n_j over i's group``. For classifiers every ``n_i`` is
    1; for causal LMs it is the number of response tokens, so the mean is the usual one over tokens. A sample
    without targets weighs 0.

    Parameters
    ----------
    counts : Tensor [B], int64
        Targets of each sample.
    isolated : Tensor [B], bool
        Which samples belong to the isolated group.
    totals : Tensor [2]
        Sums of :func:`group_totals` over all micro-batches and ranks of the step.

    Returns
    -------
    Tensor [B], float32
    """
    return counts.to(torch.float32) / totals.clamp(min=1.0)[isolated.long()]


def auto_gamma(n_classes: int | None, initial_loss: float | None = None) -> float:
    """Flooding level for a task: ``0.217 ln C`` for C classes, ``0.35`` times the first mean loss for causal LMs.

    ABL's 0.5 was chosen for ten classes, where it is 21.7 % of the chance level ``ln 10``; the same share of
    ``ln C`` keeps its meaning elsewhere. Both are this project's proposals, not the paper's.
    """
    if n_classes is not None:
        return 0.217 * math.log(max(n_classes, 2))
    if initial_loss is None or not math.isfinite(initial_loss) or initial_loss <= 0:
        raise ConfigError("gamma='auto' for a causal LM needs a positive first mean loss")
    return 0.35 * initial_loss
