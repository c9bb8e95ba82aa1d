"""Gradient alignment, as a training request carries it: whose gradient to follow, by which rule, on which schedule.

The rule itself is :func:`asepsis.kernels.gradient_alignment`; the drivers apply it between the backward pass and
clipping (Wu et al., ACL 2024, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from asepsis.data import Data
from asepsis.errors import ConfigError
from asepsis.kernels import Granularity, Rule

Passes = Literal["auto", "one", "two"]
BelowGate = Literal["raw", "align"]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Replace each step's gradient by its projection on the gradient of clean reference rows.

    Attributes
    ----------
    reference : Data
        Trusted rows, of the run's task.
    batch_size : int
        Most reference rows per optimizer step, over all micro-batches and ranks; the rows are divided into equal
        batches.
    rule, granularity : str
        See :func:`asepsis.kernels.gradient_alignment`.
    min_reference_loss, min_reference_norm : float
        The gate: where the reference loss (nats) or the mean norm of its gradients is not above these, the clean rows
        have nothing more to say, and the raw gradient is blended in, or taken as it is before ``first_blend_epoch``.
    first_blend_epoch : int
        Epochs, from 0, before which there is no blending.
    max_raw_weight : float
        Weight of the raw gradient grows linearly to this over the epochs; 0 turns blending off.
    below_gate : {"raw", "align"}
        What happens below the gate where nothing is blended: the authors' code takes the raw gradient, undefended.
    passes : {"auto", "one", "two"}
        Both gradients from one concatenated pass, or from two. One needs that only low-rank layers are trained.
    """

    reference: Data
    batch_size: int = 32
    rule: Rule = "reflect"
    granularity: Granularity = "tensor"
    min_reference_loss: float = 0.4
    min_reference_norm: float = 5e-7
    first_blend_epoch: int = 1
    max_raw_weight: float = 0.1
    below_gate: BelowGate = "raw"
    passes: Passes = "auto"

    def __post_init__(self) -> None:
        choices = {"rule": Rule, "granularity": Granularity, "below_gate": BelowGate, "passes": Passes}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                wanted = ", ".join(get_args(allowed))
                raise ConfigError(f"{name} must be one of {wanted}, got {getattr(self, name)!r}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size of the reference must be at least 1, got {self.batch_size!r}")
        if not 0 <= self.max_raw_weight <= 1:
            raise ConfigError(f"max_raw_weight must lie in [0, 1], got {self.max_raw_weight!r}")
        for name in ("min_reference_loss", "min_reference_norm", "first_blend_epoch"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {value!r}")

    def raw_weight_below(self, epoch: int, epochs: float) -> float:
        """Return the raw gradient's weight below the gate: ``max_raw_weight * (epoch - first) / (epochs - first)``."""
        first = self.first_blend_epoch
        if self.max_raw_weight > 0 and epoch >= first:
            return self.max_raw_weight * (epoch - first) / max(1.0, epochs - first)
        return 1.0 if self.below_gate == "raw" else 0.0
