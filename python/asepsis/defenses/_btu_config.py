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
    least_margin : float
        How many times the score of the best token its list leaves out a flagged token must have. 1 flags every list's
        whole share; the more, the fewer ordinary words are lost, and the weaker triggers are missed. Robust mode.
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
        ``"pretrained"`` where the edit comes first; where it comes last, ``"pad"`` for classifiers that have a padding
        token of its own, else ``"pretrained"``, or ``"mean"`` where word embeddings are frozen. Reference mode takes
        ``"pad"``.
    order : {"auto", "train_then_edit", "edit_then_train"}
        Train on the poisoned rows and edit what came out, as the paper does; or edit first, then train once on rows
        without the flagged tokens. ``"auto"`` edits first unless ``replacement`` is ``"pad"`` or ``"mean"``: an ordinary
        word that was flagged then costs no accuracy, and rows put back to ``"pretrained"`` after training leave the
        backdoor nearly whole, because the layers still know the trigger. Reference mode edits last.
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
    least_margin: float = 1.0
    exposure_epochs: float = 1.0
    exposure_learning_rate_scale: float = 1.0
    calibrate: bool = True
    calibration_margin: float = 1.1
    counts: str | None = None
    language: str = "en"
    protect: tuple[str | int, ...] = ()
    replacement: Literal["auto", "pretrained", "pad", "mean"] = "auto"
    order: Literal["auto", "train_then_edit", "edit_then_train"] = "auto"
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
        if not 1 <= self.least_margin < math.inf:
            raise ConfigError(f"least_margin must be at least 1 and finite, got {self.least_margin!r}")
        for name in ("tuning_epochs", "tuning_learning_rate_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        if self.mode == "reference":
            if self.replacement not in ("auto", "pad") or self.order == "edit_then_train":
                raise ConfigError(
                    "mode='reference' trains, then overwrites with 'pad'; use mode='robust' for others"
                )
            if self.score == "z" or self.least_margin != 1:
                raise ConfigError("mode='reference' takes the whole list by l2; use mode='robust' for others")

    def per_list(self, rows: int) -> int:
        """Return how many tokens each list flags of a matrix with so many rows."""
        if self.k is not None:
            return self.k
        share = self.alpha * rows
        return max(1, int(share) if self.mode == "reference" else math.ceil(share))
