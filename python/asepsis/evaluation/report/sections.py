"""Sections from evidence: one function for each, the same for every kind of folder. None where there is no evidence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.core.judged import Judged
from asepsis.core.manifest import ROWS as ROWS_FILE
from asepsis.data.visible import visible
from asepsis.evaluation.metrics import auroc_interval, detection_metrics, roc_curve, wilson
from asepsis.evaluation.report import content
from asepsis.evaluation.report.content import Figure, Row, Rows, Table, number, proportion
from asepsis.evaluation.report.plots import (
    MOST_LINES,
    MOST_POINTS,
    drift_svg,
    losses_svg,
    roc_svg,
    scores_svg,
)

Arrays = dict[str, NDArray[Any]]
#: A token to mark: its name, made visible, how far it moved, how often it is expected.
Named = tuple[str, float, "float | None"]

_NAME = 60


def name_of(text: Any, limit: int = _NAME) -> str:
    """Return a name out of a folder as a reader can trust it."""
    return visible(str(text), limit)


def counted(n: int, what: str) -> str:
    """Return a count of things, one or several."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def token_of(text: Any) -> str:
    """Return a token by its ``repr``, so that spaces in it are seen."""
    return visible(repr(str(text)), _NAME)


def evaluations_table(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Return the control table: every model that was measured, with intervals; a guard's rows below its model's."""
    if not rows:
        return None
    lines = []
    for row in rows:
        lines.append([name_of(row["model"]), *_numbers(row)])
        if row.get("guard"):
            lines[-1][0] += ", behind the guard"
            lines.append([f"{name_of(row['model'])}, without it", *_numbers(row["unguarded"])])
    return Table(
        title=content.CONTROL,
        head=["model", "clean accuracy", "attack success"],
        rows=lines,
        note="Shares of test rows with their 95 % Wilson intervals. An attack succeeds where a triggered row is taken for "
        "the target; a model trained without the poison shows how many of them are mistaken for it anyway.",
    )


def _numbers(row: dict[str, Any]) -> list[str]:
    return [proportion(row["clean_accuracy"]), proportion(row["attack_success_rate"])]


def losses_figure(arrays: Arrays, judged: Judged) -> Figure | None:
    """Return the loss trajectories."""
    if "loss.values" not in arrays:
        return None
    steps, values = arrays["loss.steps"], arrays["loss.values"]
    usable: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=0))
    if not usable.any():
        return None
    values, flagged = values[:, usable], judged.flagged[usable]
    medians = [
        f"{np.median(values[-1, part]):.3g} for {int(part.sum()):,} {name}"
        for part, name in ((flagged, "flagged rows"), (~flagged, "others"))
        if part.any()
    ]
    lost = len(usable) - int(usable.sum())
    left_out = f" Left out: {counted(lost, 'row')} without a finite loss." if lost else ""
    lines = f"; thin lines are {min(MOST_LINES, int(flagged.sum()))} of the flagged" if flagged.any() else ""
    return Figure(
        title=content.LOSSES,
        draw=partial(losses_svg, steps, values, flagged),
        note=f"Bands hold the middle 90 % and 50 % of the rows not flagged{lines}. What is learned too fast falls away "
        f"first.{left_out}",
        alt=f"Median loss at step {int(steps[-1]):,}: {', '.join(medians)}.",
    )


def drift_figure(arrays: Arrays, named: Sequence[Named], what: str) -> Figure | None:
    """Return the drift of word embeddings with the named tokens marked; ``what`` says how those were chosen."""
    if "token.drift" not in arrays:
        return None
    drift, frequency = arrays["token.drift"].astype(np.float64), arrays.get("token.frequency")
    moved = np.isfinite(drift) & (drift > 0)
    if not moved.any():
        return None
    often = None if frequency is None else np.nan_to_num(frequency[moved].astype(np.float64))
    drawn = min(MOST_POINTS, int(moved.sum()))
    marked = [one for one in named if np.isfinite(one[1]) and one[1] > 0]
    return Figure(
        title=content.DRIFT,
        draw=partial(drift_svg, drift[moved], often, marked),
        note=f"{drawn:,} of the {int(moved.sum()):,} tokens whose embeddings moved, in red {what}. Tokens at the left edge "
        "are not expected in clean text at all."
        if often is not None
        else f"{drawn:,} of the {int(moved.sum()):,} tokens whose embeddings moved, in red {what}. How frequent tokens are "
        "was not known, so they stand by rank.",
        alt=f"Largest drift {drift[moved].max():.3g}, median {np.median(drift[moved]):.3g}; marked: "
        + (", ".join(name for name, _, _ in marked[:8]) or "none")
        + ".",
    )


def scores_figure(
    scores: NDArray[np.float32],
    flagged: NDArray[np.bool_] | None,
    threshold: float | None,
    *,
    label: str,
    note: str,
    title: str = content.SCORES,
) -> Figure | None:
    """Return the histogram of scores with the threshold."""
    finite = np.isfinite(scores)
    if not finite.any():
        return None
    values = scores[finite]
    above = None if flagged is None else int(flagged.sum())
    cut = "" if threshold is None else f", threshold {threshold:.4g}"
    return Figure(
        title=title,
        draw=partial(scores_svg, scores, flagged, threshold, label),
        note=note,
        alt=f"{len(values):,} scores from {values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}{cut}"
        + ("." if above is None else f"; {counted(above, 'row')} flagged."),
    )


def roc_sections(judged: Judged | None, poisoned: NDArray[np.bool_] | None) -> list[Figure | Table]:
    """Return the ROC curve with its band and the numbers against the key; empty without key or suspicion."""
    if judged is None or judged.suspicion is None or poisoned is None:
        return []
    known = np.isfinite(judged.suspicion)
    scores, flagged, poisoned = judged.suspicion[known], judged.flagged[known], poisoned[known]
    curve = roc_curve(scores, poisoned)
    area = auroc_interval(scores, poisoned)
    if curve is None or area is None:
        return []
    measured = detection_metrics(scores, flagged, poisoned)
    bad = int(poisoned.sum())
    thin = _thinned(curve.fpr, curve.tpr)
    curve = type(curve)(*(part[thin] for part in curve))
    ends = [wilson(round(share * bad), bad) for share in curve.tpr.tolist()]
    band = np.array([end.low for end in ends]), np.array([end.high for end in ends])
    fpr, tpr = measured["fpr"], measured["tpr"]
    at = (fpr, tpr) if flagged.any() and fpr is not None and tpr is not None else None
    hits, alarms, clean = (
        int((flagged & poisoned).sum()),
        int((flagged & ~poisoned).sum()),
        len(poisoned) - bad,
    )
    rows = [
        ["AUROC", proportion(area)],
        ["poisoned rows flagged", proportion(wilson(hits, bad).to_dict())],
        ["clean rows flagged", proportion(wilson(alarms, clean).to_dict())],
        [
            "flagged rows poisoned",
            proportion(wilson(hits, hits + alarms).to_dict()) if hits + alarms else "–",
        ],
    ]
    return [
        Figure(
            title=content.ROC,
            draw=partial(roc_svg, curve, band, at),
            note=f"{bad:,} poisoned and {clean:,} clean rows by the answer key. The band is the 95 % Wilson interval of the "
            "share at each threshold by itself.",
            alt=f"AUROC {proportion(area)}.",
        ),
        Table(
            title="Against the answer key",
            head=["measure", "value with its 95 % interval"],
            rows=rows,
            note="The key is the evaluation's; no defense saw it.",
        ),
    ]


def _thinned(fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return positions of a curve's points that can be told apart at 400 units."""
    grid = np.stack([np.round(fpr * 400), np.round(tpr * 400)], 1)
    keep = np.r_[True, (np.diff(grid, axis=0) != 0).any(1)]
    keep[-1] = True
    return np.flatnonzero(keep)


def rows_section(judged: Judged | None) -> Rows | None:
    """Return the rows to look at."""
    if judged is None or not judged.listed or judged.suspicion is None:
        return None
    suspicion, flagged = judged.suspicion, int(judged.flagged.sum())
    rows = [
        Row(
            row=one.row,
            suspicion=number(suspicion[one.row] if np.isfinite(suspicion[one.row]) else None),
            answer=f"label {one.label}" if one.label is not None else _answer(one.response),
            text=visible(one.text),
        )
        for one in judged.listed
    ]
    note = (
        "Most suspicious first. This text is whoever made it's: characters that hide or reorder are shown by code."
        if flagged
        else "No row was flagged; these are the most suspicious. Characters that hide or reorder are shown by code."
    )
    return Rows(
        title=content.ROWS if flagged else "Most suspicious rows",
        rows=rows,
        note=note,
        more=max(0, flagged - len(rows)) if flagged else 0,
        where=ROWS_FILE,
    )


def _answer(response: str | None) -> str:
    return "" if response is None else f"answer {visible(response, 80)}"


def rows_histogram(judged: Judged | None, threshold: float | None) -> Figure | None:
    """Return the suspicion of every row, flagged ones in red."""
    if judged is None or judged.suspicion is None:
        return None
    return scores_figure(
        judged.suspicion,
        judged.flagged,
        threshold,
        label="suspicion (higher is worse)",
        note="Every row, the flagged in red. Heights are square roots, so that few rows are seen beside many."
        + ("" if threshold is not None else " The method groups rows; it has no single threshold."),
    )
