"""The folder of a guard: its threshold beside that of the model's own confidence, and the clean scores that set both."""

from __future__ import annotations

from typing import Any

import numpy as np

from asepsis.evaluation.report import content
from asepsis.evaluation.report.content import Table, number
from asepsis.evaluation.report.folder import Source
from asepsis.evaluation.report.parts import Parts
from asepsis.evaluation.report.sections import name_of, scores_figure


def of_guard(source: Source) -> Parts:
    """Return what ``asepsis guard fit`` left."""
    guard = source.guard
    assert guard is not None
    detector, threshold = name_of(source.manifest["detector"]), guard["threshold"]
    rate, low, high = (float(threshold[name]) for name in ("expected_fpr", "low", "high"))
    rows = [_row(f"{detector} (the guard)", threshold)]
    figures = [_scores(guard["calibration"]["scores"], threshold, detector, content.SCORES)]
    if guard["control"] is not None:
        control = guard["control"]["threshold"]
        rows.append(_row("the model's own confidence (control)", control))
        figures.append(
            _scores(guard["calibration"]["control"], control, "confidence", "The same rows, by confidence")
        )
    chance = threshold.get("chance")
    kept = "" if chance is None else f" The wanted rate is kept with probability {float(chance):.2f}."
    return Parts(
        title=f"Guard by {detector}",
        subject=name_of(source.manifest["model"] or "a model in memory"),
        verdict=f"Flags what scores above {float(threshold['value']):.4g}: {rate:.2%} of clean inputs, between {low:.2%} and "
        f"{high:.2%}.{kept}",
        tone="quiet",
        caveat="Calibrated on clean rows like the inputs to come, and on no others. Whether it finds triggered inputs is "
        "measured by asepsis evaluate --guard.",
        tables=[
            Table(
                title="The guard and its control",
                head=["detector", "threshold", "clean rows flagged", "wanted", "rows"],
                rows=rows,
                note="The share of clean inputs that this one threshold flags, with its 95 % interval, from rows the detector "
                "did not learn from.",
            )
        ],
        scores=figures,
        commands={
            content.CONTROL: "asepsis evaluate DIR --guard GUARD --clean TEST --triggered TRIGGERED --target-label N --json "
            "NUMBERS.json, then asepsis report GUARD --evaluation NUMBERS.json",
            content.ROWS: "asepsis guard check GUARD FILE --output OUT",
            content.ROC: "asepsis guard check GUARD FILE --output OUT, then asepsis report OUT --key KEY",
        },
    )


def _row(name: str, threshold: dict[str, Any]) -> list[str]:
    rate, low, high = (number(threshold[name], ".4f") for name in ("expected_fpr", "low", "high"))
    return [
        name,
        number(threshold["value"], ".4g"),
        f"{rate} [{low}, {high}]",
        number(threshold["target_fpr"], "g"),
        f"{int(threshold['n']):,}",
    ]


def _scores(values: Any, threshold: dict[str, Any], name: str, title: str) -> Any:
    scores, cut = np.asarray(values, np.float32), float(threshold["value"])
    return scores_figure(
        scores,
        scores > np.float32(cut),
        cut,
        label=f"score by {name} (higher is worse)",
        note="Clean rows held out to calibrate on; those above the threshold in red. Heights are square roots.",
        title=title,
    )
