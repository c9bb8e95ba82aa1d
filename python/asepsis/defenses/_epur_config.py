"""Settings of E-PUR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError

_SHARE = 0.0066  # 200 of BERT's 30,522 tokens


@dataclass(frozen=True, kw_only=True)
class EpurConfig(DefenseConfig):
    """Settings of E-PUR. Counts and corpus are given to :func:`asepsis.purify`.

    Attributes
    ----------
    top_k : int or "auto"
        How many tokens are reset; ``"auto"`` is 0.66 % of the vocabulary and at most 200. A token reset without need
        costs one word's tuning.
    floor : float
        Expected count in ten million tokens below which tokens count as equally rare.
    language : str
        Of the word list, where neither counts nor a corpus are given and the package ``wordfreq`` is installed.
    tune_epochs : float
        Passes over the clean rows afterwards; 0 leaves the model as it is but for the rows reset.
    warmup : float
        Share of those steps over which the learning rate rises.
    """

    top_k: int | Literal["auto"] = "auto"
    floor: float = 20.0
    language: str = "en"
    tune_epochs: float = 0.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != "auto" and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1 or 'auto', got {self.top_k!r}")
        if not 1 < self.floor < math.inf:
            raise ConfigError(f"floor must be finite and above 1, got {self.floor!r}")
        if not 0 <= self.tune_epochs < math.inf:
            raise ConfigError(f"tune_epochs must be finite and not negative, got {self.tune_epochs!r}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must lie in [0, 1), got {self.warmup!r}")

    def k_of(self, vocabulary: int) -> int:
        """Return how many tokens of so many are reset."""
        return min(200, math.ceil(_SHARE * vocabulary)) if self.top_k == "auto" else self.top_k
