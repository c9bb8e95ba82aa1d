"""Settings of PSIM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asepsis.core.confidence import Measure
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError

Kind = Literal["p_tuning", "prompt_tuning", "prefix_tuning", "lora"]
Answers = Literal["classes", "verbalizers", "free"]

_LEARNING_RATES = {"lora": 5e-4}
_VIRTUAL_LEARNING_RATE = 2e-3


@dataclass(frozen=True, kw_only=True)
class PsimConfig(DefenseConfig):
    """Settings of PSIM. Defaults that are not said to be the authors' are this project's.

    ``PsimConfig(kind="p_tuning", learning_rate=2e-5, epochs=1, stop="never", threshold="reference")`` with a two-class
    encoder is what the authors' code does by default, but that a quarter of the rows is watched here and not learned from,
    and that gradients are clipped at a norm of 1.

    Attributes
    ----------
    kind : {"auto", "p_tuning", "prompt_tuning", "prefix_tuning", "lora"}
        What is trained beside the frozen weights. ``"auto"`` is LoRA. The authors' is P-tuning v1; ``prefix_tuning`` is
        P-tuning v2.
    head : {"auto", "frozen", "trained"}
        Of a classifier. PEFT trains it with every kind, and so do the authors; the module then unlearns the way from the
        trigger to the target in the head, within a few steps (docs/results/psim.md). ``"auto"`` freezes it with LoRA, and
        trains it with virtual tokens, which by themselves may never make the model unsure.
    virtual_tokens, hidden_size : int
        Of the virtual prompts, 5 in the authors' code; of P-tuning v1's prompt encoder, 128 there.
    rank : int
        Of LoRA on the attention's queries and values; its alpha is twice that.
    labels : {"uniform_fixed", "uniform_per_epoch", "permute"}
        Drawn once for each row, as the authors do; anew each time a row comes, so that no row's label can be learned by
        heart; or the rows' own labels, shuffled, which leaves an unbalanced set its majority.
    learning_rate : float or None
        The highest: it rises over the warm-up and falls to zero over ``steps``, linearly, as in the authors' code, where it
        is 2e-5. None for 2e-3, with LoRA 5e-4.
    warmup : float
        Share of the steps over which the learning rate rises; 0.06 in the authors' code.
    batch_size : int
        Rows per step.
    steps, epochs : int, float or None
        Longest training, and with it how fast the learning rate falls; ``epochs`` wins where it is given.
    stop : {"usable", "never"}
        Stop as soon as clean rows that were held out are unsure, or train on to the end, as the authors do. Trained on
        much longer the module forgets the backdoor as well.
    check_every : int
        Steps between two looks at the held-out rows.
    watched : int
        Rows held out for that at most; a quarter of the rows at most.
    unsure : float
        Usable is a module whose 95 % quantile of clean confidence is at most this with two classes, 0.7 being the bar of
        the authors, and as far above chance with more; or whose mean clean confidence is within a tenth of the way from chance to 1.
    fall : float
        For free answers, where chance is not known: usable from this share of the clean score before training.
    score : {"confidence", "margin", "entropy", "energy"}
        See :func:`asepsis.core.confidence.sureness`; the authors' is the confidence. Free answers have a score of their own.
    by_class : {"auto", "always", "never"}
        Score the confidence above chance as a multiple of what is usual for clean rows with the same answer: a module may stay
        surer of one answer than of another, and rows of the surer one then hide the trigger. ``"auto"`` does so for
        verbalizers, where it was measured (docs/results/psim.md).
    threshold : {"conformal", "reference", "normalized"}
        Calibrated for the wanted rate on clean rows; 0.7, as in the authors' code; as far above chance as 0.7 is with
        two classes.
    answers : {"auto", "verbalizers", "free"}
        How a causal LM answers: by one of a few words, all others are then left out of account; or freely. ``"auto"``
        takes at most 16 responses that come eight times each on average for verbalizers.
    tokens, skip, window : int
        Free answers: tokens decoded, how many of the first do not count, and the length of the window, see
        :func:`asepsis.core.confidence.fluency`.
    """

    kind: Literal["auto", "p_tuning", "prompt_tuning", "prefix_tuning", "lora"] = "auto"
    head: Literal["auto", "frozen", "trained"] = "auto"
    virtual_tokens: int = 5
    hidden_size: int = 128
    rank: int = 8
    labels: Literal["uniform_fixed", "uniform_per_epoch", "permute"] = "uniform_fixed"
    learning_rate: float | None = None
    warmup: float = 0.06
    batch_size: int = 32
    steps: int = 200
    epochs: float | None = None
    stop: Literal["usable", "never"] = "usable"
    check_every: int = 5
    watched: int = 200
    unsure: float = 0.7
    fall: float = 0.5
    score: Measure = "confidence"
    by_class: Literal["auto", "always", "never"] = "auto"
    threshold: Literal["conformal", "reference", "normalized"] = "conformal"
    answers: Literal["auto", "verbalizers", "free"] = "auto"
    tokens: int = 12
    skip: int = 2
    window: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {
            "virtual_tokens": 1,
            "hidden_size": 1,
            "rank": 1,
            "batch_size": 1,
            "steps": 1,
            "check_every": 1,
            "watched": 1,
            "tokens": 1,
            "skip": 0,
            "window": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)!r}")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {value!r}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must lie in [0, 1), got {self.warmup!r}")
        if not 0.5 < self.unsure < 1:
            raise ConfigError(
                f"unsure must lie between chance with two classes, 0.5, and 1, got {self.unsure!r}"
            )
        if not 0 < self.fall < 1:
            raise ConfigError(f"fall must lie in (0, 1), got {self.fall!r}")
        if self.threshold != "conformal" and self.score != "confidence":
            raise ConfigError(
                f"threshold={self.threshold!r} is a confidence, and score is {self.score!r}; use threshold='conformal'"
            )

        if self.by_class == "always" and (self.threshold, self.score) != ("conformal", "confidence"):
            raise ConfigError(
                "by_class='always' needs score='confidence' and threshold='conformal': it has no unit of its own"
            )

    def rate(self, kind: Kind) -> float:
        """Return the learning rate for a kind of module."""
        return self.learning_rate or _LEARNING_RATES.get(kind, _VIRTUAL_LEARNING_RATE)
