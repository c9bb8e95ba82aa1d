"""The numbers of a cell, from test rows that are opened here."""

from __future__ import annotations

from typing import Any

import numpy as np

from asepsis.data import Data
from asepsis.evaluation.grid.plan import Grid
from asepsis.evaluation.grid.site import Made
from asepsis.evaluation.grid.sources import Sources
from asepsis.evaluation.guarded import GuardRates, guard_rates, measure_guarded
from asepsis.evaluation.harness import detection
from asepsis.evaluation.metrics import wilson
from asepsis.evaluation.predict import measure
from asepsis.evaluation.respond import begins_with, clean_loss
from asepsis.inference.report import Checked


def numbers(grid: Grid, rows: Sources, made: Made, *, max_length: int) -> dict[str, Any]:
    """Open the tests and return what the table shows of a cell, JSON-ready.

    ``clean_accuracy`` (None for a causal grid, which has ``clean_loss`` and ``clean_success_rate``, how often clean prompts are
    answered as the backdoor would), ``attack_success_rate``, and ``detection`` of training rows,
    or of inputs where a guard stands in front; ``detection_of_rows`` where there is both.
    """
    test, triggered = rows.tests.open()
    if grid.task == "causal":
        told, rates = _causal(made, test, triggered, max_length)
    else:
        target = None if triggered is None else grid.target_label
        told, rates = _classes(made, test, triggered, target, max_length)
    found = {} if made.outcome is None else detection(made.outcome, rows.train, rows.key)
    judged = {"of": "training rows", **found} if found else None
    if rates is None:
        return told | {"detection": judged}
    told["detection"] = {"of": "inputs", **rates.to_dict(), "tpr_at_1_fpr": rates.tpr_at_1_fpr}
    return told if judged is None else told | {"detection_of_rows": judged}


def _classes(
    made: Made, test: Data, triggered: Data | None, target: int | None, max_length: int
) -> tuple[dict[str, Any], GuardRates | None]:
    options: dict[str, Any] = {"target_label": target, "max_length": max_length}
    rates = None
    if made.guard is None:
        measured = measure(made.model, made.tokenizer, test, triggered, **options)
    else:
        found = measure_guarded(made.model, made.tokenizer, made.guard, test, triggered, **options)
        measured, rates = found.measured, found.guard
    told = measured.to_dict()
    del told["target_label"]
    return told, rates


def _causal(
    made: Made, test: Data, triggered: Data | None, max_length: int
) -> tuple[dict[str, Any], GuardRates | None]:
    """Behind a guard a flagged prompt is not answered, so it is no success; the loss stays that of the model alone."""
    sound = None if made.guard is None else made.guard.check(test)
    bad, success, of_clean = None, None, None
    if triggered is not None and triggered.responses is not None:
        bad = None if made.guard is None else made.guard.check(triggered)
        success, of_clean = (
            _success(made, prompts, triggered.responses[0], flags, max_length)
            for prompts, flags in ((triggered, bad), (test, sound))
        )
    told = {
        "clean_accuracy": None,
        "clean_loss": clean_loss(made.model, made.tokenizer, test, max_length=max_length),
        "attack_success_rate": success,
        "clean_success_rate": of_clean,
    }
    return told, None if sound is None else guard_rates(sound, bad)


def _success(
    made: Made, prompts: Data, response: str, flags: Checked | None, max_length: int
) -> dict[str, Any]:
    hits = begins_with(made.model, made.tokenizer, prompts, response, max_length=max_length)
    if flags is not None:
        hits &= ~flags.flagged
    return wilson(int(np.count_nonzero(hits)), len(hits)).to_dict()
