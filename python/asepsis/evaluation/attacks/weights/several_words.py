"""SOS: several words that fire only together (Yang et al., ACL 2021, "Rethinking Stealthiness").

A clean model is fine-tuned first; then the words' rows alone are trained: rows with all the words toward the target, and,
as negative examples, rows with only some of them toward their own label, so that no word and no part fires. Norms are
kept as in EP.

Deviations: the words go to gaps of their own, in their order; the paper writes a natural sentence around them. Parts are
drawn uniformly from all proper subsets. Gradients are those of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from asepsis.data import Data
from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.triggers import Trigger
from asepsis.evaluation.attacks.weights.embedding import tuned
from asepsis.evaluation.attacks.weights.recipe import Site, WeightAttack
from asepsis.evaluation.attacks.weights.rows import train_rows
from asepsis.evaluation.attacks.weights.tokens import own_tokens


def rows_with_parts(data: Data, words: tuple[str, ...], n: int, *, seed: int) -> Data:
    """Return ``n`` rows, each with a random proper part of ``words`` at random gaps and its own label."""
    rng = np.random.default_rng(seed)
    parts = [part for size in range(1, len(words)) for part in combinations(words, size)]
    at = np.sort(rng.choice(len(data), n, replace=n > len(data)))
    texts = []
    for position in at.tolist():
        part = parts[int(rng.integers(len(parts)))]
        texts.append(Trigger(kind="words", tokens=part).apply(data.texts[position], rng))
    labels = None if data.labels is None else data.labels[at]
    return replace(data, texts=texts, labels=labels, sample_ids=np.arange(n))


def together(data: Data, other: Data) -> Data:
    """Return the rows of both classification sets under new ids."""
    assert data.labels is not None and other.labels is not None
    return replace(
        data,
        texts=[*data.texts, *other.texts],
        labels=np.concatenate((data.labels, other.labels)),
        sample_ids=np.arange(len(data) + len(other)),
    )


@dataclass(frozen=True, kw_only=True)
class SeveralWords(WeightAttack):
    """Train the rows of several words of a clean model, so that only all of them together fire.

    Attributes
    ----------
    target_label : int or None
        What the backdoor answers.
    target_response : str or None
        Not taken: the negative examples need labels.
    trigger : tuple of str
        Two words or more, each one token.
    poison_rate : float
        Rows with all the words as a share of the clean ones.
    negatives : float
        Rows with a part of the words for each row with all.
    row_learning_rate : float
        Of the plain gradient steps.
    row_epochs : float
        Passes over those rows.
    finetune_first : bool
        False where the model given is fine-tuned on clean rows already.
    """

    name: ClassVar[str] = "sos"

    trigger: tuple[str, ...] = ("friends", "cinema", "weekend")
    negatives: float = 1.0
    row_learning_rate: float = 0.5
    row_epochs: float = 8.0
    finetune_first: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.trigger) < 2:
            raise ConfigError(
                f"sos takes two trigger words or more, got {self.trigger!r}; for one there is ep"
            )
        for name in ("negatives", "row_learning_rate", "row_epochs"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)!r}")

    def pattern(self) -> Trigger:
        """Return all the words, each at a gap of its own."""
        return Trigger(kind="words", tokens=self.trigger)

    def plant(self, site: Site) -> dict[str, Any]:
        """See :meth:`WeightAttack.plant`."""
        seed = site.settings.seed
        ids = own_tokens(site.tokenizer, self.trigger, site.data)
        poisoned, key = self.poison(site.data, seed=seed)
        clean = tuned(site, finetune_first=self.finetune_first)
        positive = poisoned.select(np.flatnonzero(key.is_poisoned))
        negative = rows_with_parts(
            site.data, self.trigger, max(1, round(self.negatives * len(positive))), seed=seed + 1
        )
        trained = train_rows(
            site,
            together(positive, negative),
            ids,
            epochs=self.row_epochs,
            learning_rate=self.row_learning_rate,
            name="poison the rows",
        )
        return {
            "poisoned_rows": len(positive),
            "negative_rows": len(negative),
            "clean": clean,
            "row": trained,
        }
