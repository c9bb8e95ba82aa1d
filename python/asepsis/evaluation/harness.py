"""Poison, defend, measure: one experiment with its controls, the undefended one always among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asepsis.core.phases import Outcome
from asepsis.data import Data
from asepsis.evaluation.key import PoisonKey
from asepsis.evaluation.metrics import detection_metrics, precision_at_k, tpr_at_fpr
from asepsis.evaluation.predict import Measured, measure
from asepsis.training import Run, Settings, defend, describe, run_script
from asepsis.training.driver import Progress, silent
from asepsis.training.undefended import undefended

CONTROLS = ("none", "clean-only")


@dataclass(frozen=True)
class Case:
    """What an experiment is about. The key stays here: defenses see ``train`` and nothing else.

    Attributes
    ----------
    train : Data
        Poisoned training rows.
    key : PoisonKey
        Which of them are poisoned.
    test : Data
        Clean test rows.
    triggered : Data
        Triggered versions of test rows of other classes than the target.
    target_label : int
    """

    train: Data
    key: PoisonKey
    test: Data
    triggered: Data
    target_label: int


@dataclass(frozen=True)
class Row:
    """One line of the table: a defense (or control), what it reached, and how well it told the poisoned rows."""

    defense: str
    measured: Measured
    seconds: float
    detection: dict[str, float | None]
    run: Run

    def to_dict(self) -> dict[str, Any]:
        """Return the row JSON-ready; proportions carry n and their interval."""
        numbers = self.measured.to_dict()
        numbers.pop("target_label")
        return {"defense": self.defense, **numbers, "seconds": round(self.seconds, 1), **self.detection}


def run_case(
    case: Case,
    defenses: Sequence[Any],
    *,
    model: str,
    settings: Settings,
    progress: Progress = silent,
    on_row: Callable[[Row], None] = lambda row: None,
    floor: bool = True,
) -> list[Row]:
    """Train and measure the controls and every defense on one case.

    Parameters
    ----------
    defenses : sequence of str or config
        Beside the controls ``"none"`` (undefended) and ``"clean-only"`` (trained without the poisoned rows: its
        errors on triggered rows are the floor under every ASR), which always run, first.
    on_row : callable
        Called with each row as it is done.
    floor : bool
        False leaves out ``"clean-only"``, for grids that train it once for several attacks.
    """
    rows: list[Row] = []
    for choice in (*(CONTROLS if floor else CONTROLS[:1]), *defenses):
        began = time.monotonic()
        name = choice if choice in CONTROLS else describe(choice)["name"]
        run = _train(case, choice, model, settings, progress)
        seconds = time.monotonic() - began
        measured = measure(
            run.model,
            run.tokenizer,
            case.test,
            case.triggered,
            target_label=case.target_label,
            max_length=settings.max_length,
            progress=progress,
        )
        row = Row(name, measured, seconds, detection(run.outcome, case.train, case.key), run)
        rows.append(row)
        on_row(row)
    return rows


def _train(case: Case, choice: Any, model: str, settings: Settings, progress: Progress) -> Run:
    if choice == "clean-only":
        clean = case.train.sample_ids[~case.key.for_ids(case.train.sample_ids)]
        return run_script(
            model,
            case.train,
            lambda network, data: undefended(len(data), clean),
            defense={"name": "clean-only", "config": {}},
            settings=settings,
            progress=progress,
        )
    return defend(model, case.train, defense=choice, settings=settings, progress=progress)


def detection(outcome: Outcome, train: Data, key: PoisonKey) -> dict[str, float | None]:
    """Return how well an outcome's suspicion, flags and isolated rows agree with the key; empty without suspicion."""
    if outcome.suspicion is None:
        return {}
    poisoned = key.for_ids(train.sample_ids)
    flagged = np.isin(train.sample_ids, outcome.flagged)
    numbers = detection_metrics(outcome.suspicion, flagged, poisoned)
    at_one_percent = max(1, len(poisoned) // 100)
    return {
        "auroc": numbers["auroc"],
        "tpr_at_1_fpr": tpr_at_fpr(outcome.suspicion, poisoned, fpr=0.01),
        "precision_at_1_percent": precision_at_k(outcome.suspicion, poisoned, at_one_percent),
        "flagged": float(flagged.sum()),
        "flagged_precision": numbers["precision"],
        "flagged_recall": numbers["tpr"],
        "flagged_fpr": numbers["fpr"],
        "isolated_precision": float(key.for_ids(outcome.isolated).mean()) if len(outcome.isolated) else None,
    }
