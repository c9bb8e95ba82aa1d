"""Attack, defend, measure. The only layer that may name the answer key."""

from __future__ import annotations

from asepsis.evaluation.attacks import ATTACKS, Attack
from asepsis.evaluation.key import PoisonKey

__all__ = ["ATTACKS", "Attack", "PoisonKey"]
