"""Settings of Fine-mixing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FinemixingConfig(DefenseConfig):
    """Settings of Fine-mixing. Learning rate, batch size and length of rows are the training's, see ``Settings``.

    Attributes
    ----------
    reserve_ratio : float or "auto"
        Share of the victim's weights that is kept. ``"auto"`` takes the smallest of ``ratios`` that passes the guard.
    ratios : tuple of float
        To choose from, ascending.
    search : {"bisect", "ascending"}
        How the smallest ratio that passes is found: by halving, which takes a ratio that fails to speak for all smaller
        ones, or one by one from the smallest. Of 13 ratios the first trains at most 4, the second up to 13.
    mask_seeds : tuple of int
        Of the masks. With ``"auto"`` a ratio is judged by the mean over them and the best of its models is kept; a
        given ratio is mixed with the first.
    accuracy_drop : float or None
        The guard for classifiers: how far the tuned model may be below the victim on clean validation rows, as a share
        of rows. None turns the guard off, which only a given ratio allows.
    loss_rise : float
        The guard for causal LMs: how far the loss on clean validation rows may be above the victim's, in nats per
        response token. ``accuracy_drop=None`` turns it off as well.
    validation_ratio : float
        Share of the clean rows, of each class, that is held out: the guard and the choice of the epoch go by them alone.
    split_seed : int
        Of which rows those are.
    epochs : float
        Passes over the other clean rows, at most: the best on the validation rows is kept.
    warmup : float
        Share of the steps over which the learning rate rises.
    head : {"keep", "reinit"}
        What the base lacks, a classifier's output layer: kept as the victim has it, or drawn anew. Tuned either way.
    """

    reserve_ratio: float | Literal["auto"] = "auto"
    ratios: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    search: Literal["bisect", "ascending"] = "bisect"
    mask_seeds: tuple[int, ...] = (0, 1, 2)
    accuracy_drop: float | None = 0.02
    loss_rise: float = 0.1
    validation_ratio: float = 0.2
    split_seed: int = 0
    epochs: float = 10.0
    warmup: float = 0.1
    head: Literal["keep", "reinit"] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = () if self.reserve_ratio == "auto" else (float(self.reserve_ratio),)
        for ratio in (*given, *self.ratios):
            if not 0 <= ratio <= 1:
                raise ConfigError(f"a reserve ratio must lie in [0, 1], got {ratio!r}")
        if self.reserve_ratio == "auto" and (not self.ratios or self.accuracy_drop is None):
            raise ConfigError(
                "reserve_ratio='auto' chooses among ratios by the guard: give both, or a reserve_ratio such as 0.5"
            )
        if list(self.ratios) != sorted(set(self.ratios)):
            raise ConfigError(f"ratios must ascend, got {self.ratios!r}")
        if not self.mask_seeds or min(self.mask_seeds) < 0 or self.split_seed < 0:
            raise ConfigError(
                f"mask_seeds must be at least one, none negative, nor split_seed; got {self.mask_seeds!r}, {self.split_seed!r}"
            )
        if self.accuracy_drop is not None and not 0 <= self.accuracy_drop < 1:
            raise ConfigError(f"accuracy_drop must lie in [0, 1), got {self.accuracy_drop!r}")
        if not 0 <= self.loss_rise < math.inf:
            raise ConfigError(f"loss_rise must be finite and not negative, got {self.loss_rise!r}")
        if not 0 < self.validation_ratio < 1:
            raise ConfigError(f"validation_ratio must lie in (0, 1), got {self.validation_ratio!r}")
        if not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs must be positive and finite, got {self.epochs!r}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must lie in [0, 1), got {self.warmup!r}")
