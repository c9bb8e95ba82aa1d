"""A model behind a guard: what is flagged is not answered, so a flagged clean row is an error and a flagged attack fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.errors import DataError
from asepsis.evaluation.metrics import Proportion, auroc, tpr_at_fpr, wilson
from asepsis.evaluation.predict import Measured, predict
from asepsis.inference.guard import Guard
from asepsis.inference.report import Checked
from asepsis.training.driver import Progress, silent


@dataclass(frozen=True)
class GuardRates:
    """What a guard flags, and how well its suspicion tells triggered rows from clean ones.

    Attributes
    ----------
    clean_flag_rate : Proportion
    triggered_flag_rate : Proportion or None
        None where no triggered rows were given; so are the two below.
    auroc : float or None
    tpr_at_1_fpr : float or None
        Share of triggered rows above all but 1 % of the clean ones.
    """

    clean_flag_rate: Proportion
    triggered_flag_rate: Proportion | None
    auroc: float | None
    tpr_at_1_fpr: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the three numbers of ``asepsis evaluate --guard``, rates without their intervals."""
        triggered = self.triggered_flag_rate
        return {
            "clean_flag_rate": self.clean_flag_rate.value,
            "triggered_flag_rate": None if triggered is None else triggered.value,
            "auroc": self.auroc,
        }


@dataclass(frozen=True)
class MeasuredGuard:
    """CACC and ASR of a guarded model, those of the model alone, and what guard and control flag."""

    measured: Measured
    unguarded: Measured
    guard: GuardRates
    control: GuardRates | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``asepsis evaluate --guard``."""
        control = None if self.control is None else self.control.to_dict()
        return {
            **self.measured.to_dict(),
            "guard": {**self.guard.to_dict(), "control": control},
            "unguarded": self.unguarded.to_dict(),
        }


def measure_guarded(
    model: Any,
    tokenizer: Any,
    guard: Guard,
    clean: Data,
    triggered: Data | None = None,
    *,
    target_label: int | None = None,
    max_length: int = 128,
    progress: Progress = silent,
) -> MeasuredGuard:
    """Return CACC and ASR of a classifier with and without a guard in front.

    Parameters
    ----------
    model, tokenizer
        Who answers: the model the guard was fitted on, or one tuned from it.
    triggered, target_label
        As for :func:`asepsis.evaluation.predict.measure`.
    """
    if (triggered is None) != (target_label is None):
        raise DataError("triggered rows and target_label go together")
    if clean.labels is None:
        raise DataError("clean rows need labels")
    right = predict(model, tokenizer, clean, max_length=max_length, progress=progress) == clean.labels
    sound = guard.check(clean, control=True)
    hit, bad = None, None
    if triggered is not None:
        hit = predict(model, tokenizer, triggered, max_length=max_length, progress=progress) == target_label
        bad = guard.check(triggered, control=True)
    return MeasuredGuard(
        measured=_measured(
            right & ~sound.flagged,
            None if hit is None or bad is None else hit & ~bad.flagged,
            target_label,
        ),
        unguarded=_measured(right, hit, target_label),
        guard=guard_rates(sound, bad),
        control=None if guard.control is None else guard_rates(sound, bad, control=True),
    )


def _measured(right: NDArray[np.bool_], hit: NDArray[np.bool_] | None, target: int | None) -> Measured:
    success = None if hit is None else wilson(int(hit.sum()), len(hit))
    return Measured(wilson(int(right.sum()), len(right)), success, target)


def guard_rates(sound: Checked, bad: Checked | None, *, control: bool = False) -> GuardRates:
    """Return what a guard flags of clean and of triggered rows, or what its control does."""

    def of(found: Checked) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        if not control:
            return found.flagged, found.suspicion
        flagged, suspicion = found.control_flagged, found.control_suspicion
        assert flagged is not None and suspicion is not None
        return flagged, suspicion

    flags, scores = of(sound)
    rate = wilson(int(flags.sum()), len(flags))
    if bad is None:
        return GuardRates(rate, None, None, None)
    bad_flags, bad_scores = of(bad)
    poisoned = np.r_[np.zeros(len(scores), bool), np.ones(len(bad_scores), bool)]
    both = np.r_[scores, bad_scores]
    return GuardRates(
        clean_flag_rate=rate,
        triggered_flag_rate=wilson(int(bad_flags.sum()), len(bad_flags)),
        auroc=auroc(both, poisoned),
        tpr_at_1_fpr=tpr_at_fpr(both, poisoned, fpr=0.01),
    )
