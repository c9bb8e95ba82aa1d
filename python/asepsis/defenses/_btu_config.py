"""Settings of BTU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asepsis.core.purge import ThresholdRule
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError

Mode = Literal["robust", "reference"]
Replacement = Literal["pretrained", "pad", "mean"]


@dataclass(frozen=True, kw_only=True)
class BtuConfig(DefenseConfig):
    """Settings of BTU. Defaults that are not said to be the authors' are this project's.

    Attributes
    ----------
    mode : {"robust", "reference"}
        This project's algorithm, or the steps of the authors' code for side-by-side runs.
    alpha : float
        Share of the vocabulary that each list of each round flags; 0.0005 in the authors' code.
    k : int or None
        Tokens per list instead of the share. The authors' code takes 17 of BERT's 30,522.
    score : {"both", "l2", "z"}
        Lists by distance moved, by distance conditioned on how frequent a token is in clean text, or both. Robust
        mode; where no frequency is known there is no list by ``z``.
    exposure_epochs : float
        Length of each exposure; 1 in the authors' code.
    exposure_learning_rate_scale : float
        Factor on the user's learning rate while exposing; the rate is constant there.
    calibrate : bool
        Robust mode with clean rows: expose on those too, and let the list by ``z`` hold only what moved further.
    calibration_margin : float
        Factor on the largest ``z`` that clean rows reach.
    counts : str or None
        JSON file ``{token or id: count}`` of clean text. Otherwise 1,000 clean reference rows or more are counted, else
        the word list of the package ``wordfreq`` is taken.
    language : str
        Of that word list.
    protect : tuple of str or int
        Tokens, or ids, never edited, beside special tokens and the bytes of byte-level tokenizers.
    replacement : {"auto", "pretrained", "pad", "mean"}
        What a flagged row becomes: as it was before training, the padding row's values, the mean row. ``"auto"`` is
        ``"pad"`` for classifiers that have a padding token of its own, else ``"pretrained"``, or ``"mean"`` where
        word embeddings are frozen. Reference mode takes ``"pad"``.
    order : {"train_then_edit", "edit_then_train"}
        Train on the poisoned rows and edit what came out, as the paper does; or edit first, then train once on rows
        without the flagged tokens. Robust mode.
    threshold_rule : {"frobenius_over_rows_sequential", "frobenius_over_rows_once"}
        Reference mode: which values of a flagged row are overwritten, see :func:`asepsis.core.purge.purge_dimensions`.
    tuning_epochs : float
        Passes over the clean reference rows at the end, where there are any; 1 in the authors' code, 0 for none.
    tuning_learning_rate_scale : float
        Factor on the user's learning rate there.
    """

    mode: Mode = "robust"
    alpha: float = 5e-4
    k: int | None = None
    score: Literal["both", "l2", "z"] = "both"
    exposure_epochs: float = 1.0
    exposure_learning_rate_scale: float = 1.0
    calibrate: bool = True
    calibration_margin: float = 1.1
    counts: str | None = None
    language: str = "en"
    protect: tuple[str | int, ...] = ()
    replacement: Literal["auto", "pretrained", "pad", "mean"] = "auto"
    order: Literal["train_then_edit", "edit_then_train"] = "train_then_edit"
    threshold_rule: ThresholdRule = "frobenius_over_rows_sequential"
    tuning_epochs: float = 1.0
    tuning_learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha must lie in (0, 1), got {self.alpha!r}; the authors' share is 0.0005")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"k must be at least 1, got {self.k!r}")
        for name in ("exposure_epochs", "exposure_learning_rate_scale", "calibration_margin"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("tuning_epochs", "tuning_learning_rate_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        if self.mode == "reference":
            if self.replacement not in ("auto", "pad") or self.order != "train_then_edit":
                raise ConfigError(
                    "mode='reference' trains, then overwrites with 'pad'; use mode='robust' for others"
                )
            if self.score == "z":
                raise ConfigError("mode='reference' ranks by l2 alone; use mode='robust' for z")

    def per_list(self, rows: int) -> int:
        """Return how many tokens each list flags of a matrix with so many rows."""
        if self.k is not None:
            return self.k
        share = self.alpha * rows
        return max(1, int(share) if self.mode == "reference" else math.ceil(share))
