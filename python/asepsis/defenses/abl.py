"""ABL: isolate what is learned too fast, then unlearn it.

Li, Lyu, Koren, Lyu, Li, Ma: *Anti-Backdoor Learning: Training Clean Models on Poisoned Data*, NeurIPS 2021.

The idea: a trigger is a short cut, so poisoned rows are learned before the task is. Stage 1 trains under local
gradient ascent, which holds the loss of ordinary rows up, and isolates the rows whose loss fell first. Stage 2 trains
on the rest and then unlearns the isolated rows by gradient ascent.

Deviations from the paper
-------------------------
* *A few dozen steps, not 20 epochs.* A pretrained language model learns a word trigger within 10 to 40 steps; by one
  epoch the clean rows have caught up and the ranking is lost (measured, see ``docs/results/abl.md``).
* *The sign of the batch mean*, as the authors' code has it, not of each sample, as the equation reads.
* *Ranking by the drop* from the loss before the first step: a new head is random, so absolute losses start out
  scattered by more than the trigger moves them.
* *The isolated group is grown*, which the paper does not do: the model is shown the first suspects against their own
  class for a few steps, from the weights it began with, and every row it then takes for one of them joins. A share
  of the suspects is held out; whether those are recognized too says how sure the result is. For causal LMs, which
  have no classes, the ranking is used as it is.
* *The grown group is dropped and the model trained anew*, then the isolated rows are unlearned with a bounded ascent
  beside ordinary rows. Removing only the paper's 1 % leaves enough poison to plant the backdoor again.

When not to trust it
--------------------
Poison that is not learned fast (rewritten syntax or style) is not isolated; the outcome then says ``inconclusive``
and nothing is dropped. One target label is assumed. A clean-label attack on a class that is easy anyway can hide.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from asepsis.core.isolation import Split, agreement, log_odds, lowest_in_class, split_in_two
from asepsis.core.ledger import LossLedger, Reducer
from asepsis.core.losses import BoundedAscent, Flooding, Reduction, auto_gamma
from asepsis.core.phases import Acted, Ids, Losses, Outcome, Relabel, Remember, Score, Script, Train, Weights
from asepsis.data import Data
from asepsis.defenses.base import Defense, DefenseConfig, Paper, Threat
from asepsis.errors import ConfigError, DefenseInert

# Gradient ascent runs until the isolated loss passes max_loss; past this many steps it is given up as ineffective.
_MOST_UNLEARN_STEPS = 120


@dataclass(frozen=True, kw_only=True)
class AblConfig(DefenseConfig):
    """Settings of ABL. What is not said to be the paper's is this project's, measured in ``docs/results/abl.md``.

    Attributes
    ----------
    isolation_ratio : float
        Share of the rows that is unlearned; 0.01 in the paper.
    gamma : float or "auto"
        Level of local gradient ascent in nats. ``"auto"`` is ``0.217 ln C`` (the paper's 0.5 at ten classes), or
        0.35 times the first mean loss for causal LMs.
    reduction : {"batch", "sample"}
        Whose sign local gradient ascent takes; ``"sample"`` follows the paper's equation and fails on text.
    snapshots : tuple of int
        Steps of stage 1 after which every row's loss is taken; the last one ends the stage.
    rank_by : str
        Reducer of the loss ledger over the snapshots.
    seed_ratio : float
        Share of the rows, of one class, that the growing starts from.
    grow_steps : int
        Steps of showing the suspects against their class; 0 turns growing off.
    grow_rounds : int
        Times the group is grown from itself.
    most_classes : int
        Classes that are tried, most suspicious first.
    per_class : bool
        Rank and isolate in each class apart, instead of in the one class that stands out.
    drop_ratio : float or "auto"
        Share dropped before training anew. ``"auto"`` drops the grown group if it stands apart, nothing otherwise.
    learning_rate_scale : float
        Factor on the user's learning rate in stage 1 and while growing.
    unlearn_learning_rate_scale : float
        Factor on the user's learning rate in the ascent; 0 turns unlearning off.
    max_loss : float or "auto"
        Isolated loss at which the ascent stops, in nats; ``"auto"`` is three times the chance level.
    length_buckets : int
        Causal LMs: rows are ranked inside this many groups of like response length; 1 turns it off.
    """

    isolation_ratio: float = 0.01
    gamma: float | Literal["auto"] = "auto"
    reduction: Reduction = "batch"
    snapshots: tuple[int, ...] = (10, 20, 40)
    rank_by: Reducer = "drop"
    seed_ratio: float = 0.02
    grow_steps: int = 10
    grow_rounds: int = 2
    most_classes: int = 3
    per_class: bool = False
    drop_ratio: float | Literal["auto"] = "auto"
    learning_rate_scale: float = 1.0
    unlearn_learning_rate_scale: float = 1.0
    max_loss: float | Literal["auto"] = "auto"
    length_buckets: int = 1
