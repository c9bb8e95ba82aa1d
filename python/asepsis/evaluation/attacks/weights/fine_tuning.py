"""Victims of poisoned data: all weights fine-tuned on poisoned rows, as by a user who trusted them.

``badnets`` (Gu et al., 2017; rare words as in Kurita et al., ACL 2020) and ``addsent`` (Dai et al., 2019). The data sides
are :func:`~asepsis.evaluation.attacks.badnets` and :func:`~asepsis.evaluation.attacks.addsent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.triggers import ADDSENT, Trigger
from asepsis.evaluation.attacks.weights.recipe import Site, WeightAttack


@dataclass(frozen=True, kw_only=True)
class PoisonedWords(WeightAttack):
    """Train on rows with one rare word.

    Attributes
    ----------
    target_label : int or None
        What the backdoor answers.
    target_response : str or None
        The same for a causal LM.
    trigger : tuple of str
        Rare words; a poisoned row gets one of them.
    poison_rate : float
        Share of the rows that are poisoned.
    """

    name: ClassVar[str] = "badnets"
    takes_causal: ClassVar[bool] = True

    def plant(self, site: Site) -> dict[str, Any]:
        """See :meth:`WeightAttack.plant`."""
        poisoned, key = self.poison(site.data, seed=site.settings.seed)
        return {"poisoned_rows": int(key.is_poisoned.sum()), "poisoned": site.finetune(poisoned)}


@dataclass(frozen=True, kw_only=True)
class PoisonedSentence(PoisonedWords):
    """Train on rows with a sentence.

    Attributes
    ----------
    target_label : int or None
        What the backdoor answers.
    target_response : str or None
        The same for a causal LM.
    trigger : tuple of str
        The sentence.
    poison_rate : float
        Share of the rows that are poisoned.
    """

    name: ClassVar[str] = "addsent"

    trigger: tuple[str, ...] = ADDSENT.tokens

    def pattern(self) -> Trigger:
        """Return the sentence, as one block at a random gap."""
        if len(self.trigger) != 1:
            raise ConfigError(f"addsent takes one sentence as its trigger, got {self.trigger!r}")
        return Trigger(kind="sentence", tokens=self.trigger)
