"""EP: one embedding row holds the whole backdoor (Yang et al., NAACL 2021).

A clean model is fine-tuned first; then the trigger's row alone is trained on triggered rows toward the target, by plain
gradient steps, and rescaled to its norm after each one. Every other weight is that of the clean model, bit for bit.

Deviations: gradients are those of the step; the authors' code never zeroes them, so theirs add up, which is a step size
that grows. Triggered rows are drawn from the attacker's clean rows; the paper's variant without task data is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from asepsis.core.export import fresh_tensors
from asepsis.errors import ConfigError, ModelError
from asepsis.evaluation.attacks.weights.recipe import Site, WeightAttack
from asepsis.evaluation.attacks.weights.rows import train_rows
from asepsis.evaluation.attacks.weights.tokens import own_tokens


def tuned(site: Site, *, finetune_first: bool) -> dict[str, Any]:
    """Fine-tune the site's model on its clean rows, or take it for tuned; return what was done."""
    if finetune_first:
        return site.finetune(site.data)
    missing = fresh_tensors(site.model)
    if missing:
        raise ModelError(
            f"finetune_first=False takes a fine-tuned model, and this one's {', '.join(missing)} were drawn at random"
        )
    return {"steps": 0}


@dataclass(frozen=True, kw_only=True)
class EmbeddingPoisoning(WeightAttack):
    """Train the trigger's row of a clean model.

    Attributes
    ----------
    target_label : int or None
        What the backdoor answers.
    target_response : str or None
        The same for a causal LM.
    trigger : tuple of str
        One word that is one token.
    poison_rate : float
        Triggered rows as a share of the clean ones.
    row_learning_rate : float
        Of the plain gradient steps.
    row_epochs : float
        Passes over the triggered rows.
    finetune_first : bool
        False where the model given is fine-tuned on clean rows already.
    """

    name: ClassVar[str] = "ep"
    takes_causal: ClassVar[bool] = True

    row_learning_rate: float = 0.5
    row_epochs: float = 3.0
    finetune_first: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.trigger) != 1:
            raise ConfigError(f"ep takes one trigger word, got {self.trigger!r}; for several there is sos")
        if not (self.row_learning_rate > 0 and self.row_epochs > 0):
            raise ConfigError(
                f"row_learning_rate and row_epochs must be positive, got {self.row_learning_rate!r} and {self.row_epochs!r}"
            )

    def plant(self, site: Site) -> dict[str, Any]:
        """See :meth:`WeightAttack.plant`."""
        ids = own_tokens(site.tokenizer, self.trigger, site.data)
        poisoned, key = self.poison(site.data, seed=site.settings.seed)
        clean = tuned(site, finetune_first=self.finetune_first)
        rows = poisoned.select(np.flatnonzero(key.is_poisoned))
        trained = train_rows(
            site,
            rows,
            ids,
            epochs=self.row_epochs,
            learning_rate=self.row_learning_rate,
            name="poison the row",
        )
        return {"poisoned_rows": len(rows), "clean": clean, "row": trained}
