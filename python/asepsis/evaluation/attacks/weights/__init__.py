"""Attacks on weights, for evaluation: each makes a victim, a model whose weights already hold a backdoor.

``poison_weights(model, clean_rows, attack="ep", target_label=1, seed=0)`` is the door; :data:`WEIGHT_ATTACKS` names the
recipes, which hold an attack's settings as values. A victim is saved as a plain checkpoint and a manifest that says so.
What a recipe leaves out of its paper stands in its module.
"""

from __future__ import annotations

from asepsis.evaluation.attacks.weights.embedding import EmbeddingPoisoning
from asepsis.evaluation.attacks.weights.fine_tuning import PoisonedSentence, PoisonedWords
from asepsis.evaluation.attacks.weights.layerwise import LayerwisePoisoning
from asepsis.evaluation.attacks.weights.poison import Victim, poison_weights
from asepsis.evaluation.attacks.weights.recipe import WEIGHT_ATTACKS, WeightAttack
from asepsis.evaluation.attacks.weights.several_words import SeveralWords
from asepsis.evaluation.attacks.weights.surgery import EmbeddingSurgery

__all__ = [
    "WEIGHT_ATTACKS",
    "EmbeddingPoisoning",
    "EmbeddingSurgery",
    "LayerwisePoisoning",
    "PoisonedSentence",
    "PoisonedWords",
    "SeveralWords",
    "Victim",
    "WeightAttack",
    "poison_weights",
]
