"""A weight attack as a value: its settings, the rows it triggers, and what it does to a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks.choice import check_rate
from asepsis.evaluation.attacks.labels import poison_labels, triggered_test
from asepsis.evaluation.attacks.responses import poison_responses, triggered_prompts
from asepsis.evaluation.attacks.triggers import Trigger
from asepsis.evaluation.key import PoisonKey
from asepsis.training import Settings, defend
from asepsis.training.driver import Progress

WEIGHT_ATTACKS: dict[str, type[WeightAttack]] = {}
"""Every recipe by its name; a subclass of :class:`WeightAttack` that has a name enters when it is defined."""


@dataclass
class Site:
    """Where a recipe works: the model, which it changes in place, and the attacker's clean rows."""

    model: nn.Module
    tokenizer: Any
    data: Data
    settings: Settings
    progress: Progress

    @property
    def embeddings(self) -> torch.Tensor:
        """The word embeddings [V, D], the model's own tensor."""
        network: Any = self.model
        weight: torch.Tensor = network.get_input_embeddings().weight
        return weight

    def finetune(self, data: Data) -> dict[str, Any]:
        """Train all weights on ``data`` as an undefended user would; return steps and last loss."""
        run = defend(
            self.model,
            data,
            defense=None,
            processing_class=self.tokenizer,
            settings=self.settings,
            progress=self.progress,
        )
        return {"steps": run.outcome.acted.steps, "loss": run.outcome.report["loss"]}


@dataclass(frozen=True, kw_only=True)
class WeightAttack(DefenseConfig, ABC):
    """Settings of one weight attack; a subclass says what its fields mean.

    Every recipe has ``target_label``, the class the backdoor answers (or, for causal rows, ``target_response``),
    ``trigger``, its words, and ``poison_rate``, the triggered rows as a share of all.
    """

    name: ClassVar[str]
    takes_causal: ClassVar[bool] = False

    target_label: int | None = None
    target_response: str | None = None
    trigger: tuple[str, ...] = ("cf",)
    poison_rate: float = 0.1

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            WEIGHT_ATTACKS[cls.name] = cls

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self.poison_rate)
        if self.target_label is None and self.target_response is None:
            raise ConfigError(f"{self.name} needs target_label, or target_response for a causal LM")
        if self.target_label is not None and self.target_response is not None:
            raise ConfigError("give target_label, for classes, or target_response, for a causal LM, not both")
        if self.target_response is not None and not self.takes_causal:
            raise ConfigError(
                f"{self.name} acts on classifiers only; for a causal LM there are "
                f"{', '.join(sorted(n for n, kind in WEIGHT_ATTACKS.items() if kind.takes_causal))}"
            )
        self.pattern()

    def pattern(self) -> Trigger:
        """Return how a text is triggered: by default one word, drawn from ``trigger``, at a random gap."""
        return Trigger(kind="words", tokens=self.trigger, n_insertions=1)

    def check(self, data: Data) -> None:
        """Raise ``DataError`` where the rows are not of the kind the target is, or tell no classes apart."""
        if (data.task == "classification") != (self.target_label is not None):
            has, needs = (
                ("labels", "target_label")
                if data.task == "classification"
                else ("responses", "target_response")
            )
            raise DataError(f"{data.source}: rows have {has}, so the attack {self.name} needs {needs}")
        if data.labels is not None and len(set(data.labels.tolist())) < 2:
            raise DataError(
                f"{data.source}: all {len(data)} rows have label {data.labels[0]}; a victim that does its task "
                "needs clean rows of two classes at least"
            )

    def poison(self, data: Data, *, seed: int) -> tuple[Data, PoisonKey]:
        """Return all rows, ``round(poison_rate * N)`` of them triggered with the target as their answer, and which."""
        if self.target_label is not None:
            return poison_labels(
                data,
                self.pattern(),
                poison_rate=self.poison_rate,
                target_label=self.target_label,
                seed=seed,
            )
        return poison_responses(
            data,
            self.pattern(),
            target_response=self.target_response,
            poison_rate=self.poison_rate,
            seed=seed,
        )

    def triggered(self, data: Data, *, seed: int) -> Data:
        """Return the triggered test rows: those that should be answered otherwise, with the target as their answer."""
        if self.target_label is not None:
            return triggered_test(data, self.pattern(), target_label=self.target_label, seed=seed)
        return triggered_prompts(data, self.pattern(), target_response=self.target_response, seed=seed)

    @abstractmethod
    def plant(self, site: Site) -> dict[str, Any]:
        """Change the site's model into a victim; return what was done, JSON-ready."""
