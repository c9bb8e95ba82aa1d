"""Settings of ABL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from asepsis.core.ledger import Reducer
from asepsis.core.losses import Reduction
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError


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
    snapshots : tuple of int or "auto"
        Steps of stage 1 after which every row's loss is taken; the last one ends the stage. ``"auto"`` is 20, 40 and 120 for
        classifiers of at least 1,000 rows, 20 and 40 otherwise. At the third and after, a classifier's rows are ranked by what was learned of them since
        the one before, if ``rank_by`` is ``"auto"`` and the group is grown: a word in few rows is learned after the task. Two alone do
        not see it and cost less (``docs/results/abl.md``).
    rank_by : str or "auto"
        Reducer of the loss ledger over the snapshots. ``"auto"`` is ``"drop"`` for classifiers, whose new head
        scatters the first losses, and ``"last"`` for causal LMs, where a fixed response has a low loss from the
        start (measured on refusals: AUROC 0.99 against 0.7); their suspects are then looked for by the drop as well, as a short
        response may have a high loss until it is learned (so an insult in 5 % of the rows was found).
    seed_ratio : float
        Share of the rows, of one class, that the growing starts from, twice as many of a first test at the third snapshot and after; of
        rows with responses at least 8 and at most 64.
    grow_steps : int
        Steps of showing the suspects, against their class where there is one; 0 turns growing off.
    grow_learning_rate_scale : float
        Factor on stage 1's learning rate while they are shown.
    most_groups : int
        Groups of one class that are looked for, one after the other: several triggers make several groups.
    most_classes : int
        Classes that are tried, most suspicious first.
    per_class : bool
        Unlearn the share of each class, instead of the share of all rows.
    drop_ratio : float or "auto"
        Share dropped before training anew. ``"auto"`` drops the grown group if it stands apart, nothing otherwise.
    learning_rate_scale : float
        Factor on the user's learning rate in stage 1.
    unlearn : {"auto", "always", "never"}
        Whether the isolated rows are unlearned at the end. ``"auto"`` does so only where nothing was dropped
        (``drop_ratio=0``, the paper's way): after training anew without the group there is nothing to unlearn.
    unlearn_learning_rate_scale : float
        Factor on the user's learning rate in the ascent.
    max_loss : float or "auto"
        Isolated loss at which the ascent stops, in nats; ``"auto"`` is twice the chance level.
    length_buckets : int
        Causal LMs: rows are ranked inside this many groups of like response length; 1 turns it off.
    on_nothing_found : {"train", "raise"}
        What happens when no group stands apart: a warning and ordinary training, or an error.
    """

    isolation_ratio: float = 0.01
    gamma: float | Literal["auto"] = "auto"
    reduction: Reduction = "batch"
    snapshots: tuple[int, ...] | Literal["auto"] = "auto"
    rank_by: Reducer | Literal["auto"] = "auto"
    seed_ratio: float = 0.02
    grow_steps: int = 20
    grow_learning_rate_scale: float = 0.5
    most_groups: int = 4
    most_classes: int = 3
    per_class: bool = False
    drop_ratio: float | Literal["auto"] = "auto"
    learning_rate_scale: float = 1.0
    unlearn: Literal["auto", "always", "never"] = "auto"
    unlearn_learning_rate_scale: float = 1.0
    max_loss: float | Literal["auto"] = "auto"
    length_buckets: int = 1
    on_nothing_found: Literal["train", "raise"] = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("isolation_ratio", "seed_ratio"):
            if not 0 < getattr(self, name) < 0.5:
                raise ConfigError(
                    f"{name} must lie in (0, 0.5), got {getattr(self, name)!r}; ABL's share is 0.01"
                )
        steps = (1,) if self.snapshots == "auto" else self.snapshots
        if not steps or any(b <= a for a, b in pairwise((0, *steps))):
            raise ConfigError(f"snapshots must be increasing steps from 1 on, got {self.snapshots!r}")
        if self.drop_ratio != "auto" and not 0 <= self.drop_ratio < 1:
            raise ConfigError(f"drop_ratio must be 'auto' or lie in [0, 1), got {self.drop_ratio!r}")
        for name in (
            "grow_steps",
            "learning_rate_scale",
            "grow_learning_rate_scale",
            "unlearn_learning_rate_scale",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        for name in ("gamma", "max_loss"):
            level = getattr(self, name)
            if level != "auto" and not 0 < level < math.inf:
                raise ConfigError(f"{name} must be 'auto' or positive and finite, got {level!r}")
        for name in ("most_groups", "most_classes", "length_buckets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
