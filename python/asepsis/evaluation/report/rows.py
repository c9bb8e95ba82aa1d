"""Folders in which rows were judged: trainings, the demo, scans of data, a guard's checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asepsis.core.judged import Judged
from asepsis.evaluation.report import content
from asepsis.evaluation.report.content import Figure, Finding, Table, number
from asepsis.evaluation.report.folder import Source
from asepsis.evaluation.report.parts import Parts
from asepsis.evaluation.report.sections import (
    Named,
    counted,
    drift_figure,
    losses_figure,
    name_of,
    rows_histogram,
    token_of,
)

_PROVES_NOTHING = "That does not prove that none is poisoned: a method sees what it looks for, and says nothing of the rest."
_MEASURES = {
    "separation": "separation of the suspected group (a single lump has about 0.64; of gains, more)",
    "separation_wanted": "separation wanted",
    "recognized": "share of held-out suspects recognized",
    "recognized_wanted": "share wanted",
    "elsewhere": "how often rows of another class are taken for the group's, as a multiple of its own class's",
    "elsewhere_allowed": "at most",
    "gain": "gain in probability of the group's responses once others of it were shown",
    "gain_wanted": "gain wanted",
    "label": "class of the suspected group",
    "chosen_step": "step at which rows were ranked",
    "agreement_of_neighbors": "overlap of the lowest rows between snapshots",
    "nan_losses": "rows with a loss that is no number",
    "rows_with_a_flagged_token": "rows with a flagged token",
    "frequencies": "how frequent tokens are, from",
}


def of_training(source: Source) -> Parts:
    """Return what ``asepsis train`` left."""
    manifest, report = source.manifest, source.manifest["report"]
    defense, n = name_of(manifest["defense"]["name"]), int(manifest["data"]["rows"])
    flagged = 0 if source.judged is None else int(source.judged.flagged.sum())
    tokens = list(report.get("tokens") or [])
    caveat = ""
    if defense == "none":
        verdict = f"Trained on all {n:,} rows without a defense. This is a control: whatever the rows teach is in the model."
    elif tokens:
        edited = report.get("edited") or {}
        verdict = (
            f"{counted(len(tokens), 'token')} moved further than the rest while embeddings alone were trained; "
            f"{int(edited.get('rows') or 0):,} embeddings were overwritten, the others left out of the training rows."
        )
        caveat = "Each list flags its share of the vocabulary, poisoned or not: some are words of the task."
    elif "verdict" in report:
        verdict = {
            "found": f"A group of rows was learned too fast. {flagged:,} of {n:,} rows were left out of the training.",
            "doubtful": f"A group of rows may stand apart, not clearly. {flagged:,} of {n:,} rows were left out of the training.",
            "none": f"No group of the {n:,} rows stands apart; {f'{flagged:,} rows were' if flagged else 'none was'} left out of the training.",
        }.get(
            str(report["verdict"]), f"{name_of(report['verdict'])}; {flagged:,} of {n:,} rows were left out."
        )
        caveat = "" if flagged else _PROVES_NOTHING
    else:
        verdict = f"Trained on {n:,} rows with {defense}, which holds the training back and judges no rows."
        caveat = "Whether a backdoor was learned shows in attack success beside the controls."
    figures = _figures(source, [_named(token, source) for token in tokens])
    return Parts(
        title=f"Training with {defense}" if defense != "none" else "Training without a defense",
        verdict=verdict,
        tone="found" if flagged or tokens else "quiet",
        caveat=caveat,
        after=[_evidence(report), *([_tokens(tokens)] if tokens else [])],
        findings=row_findings(source, manifest["data"].get("source")),
        **figures,
    )


def of_demo(source: Source) -> Parts:
    """Return what ``asepsis demo`` left."""
    success = {row["defense"]: float(row["attack_success_rate"]["value"]) for row in source.evaluations[:3]}
    trained = of_training(source)
    return Parts(
        title="A backdoor, with and without a defense",
        subject=name_of(source.manifest["data"]["source"]),
        verdict=f"Undefended, the trigger works on {success['none']:.0%} of the reviews; under ABL on {success['abl']:.0%}; a "
        f"model that never saw the poison is wrong on {success['clean-only']:.0%} of them.",
        tone="good" if success["abl"] < success["none"] else "found",
        caveat=trained.verdict,
        losses=trained.losses,
        scores=trained.scores,
        after=trained.after,
        findings=trained.findings,
    )


def of_scan(source: Source) -> Parts:
    """Return what ``asepsis scan data --output`` left."""
    scan, report = source.manifest["scan"], source.manifest.get("report") or {}
    flagged, n, verdict = int(scan["flagged"]), int(scan["n"]), str(scan["verdict"])
    said = {
        "findings": f"{flagged:,} of {n:,} rows stand out and should not be trained on.",
        "none": f"No row of {n:,} stands out by this method."
        if not flagged
        else f"{flagged:,} of {n:,} rows lie above the threshold, no more than clean rows would.",
        "inconclusive": f"The evidence is too weak to decide about {n:,} rows.",
    }[verdict]
    threshold = scan["threshold"]
    tokens = list(report.get("tokens") or [])
    return Parts(
        title=f"Data scan by {name_of(scan['method'])}",
        subject=name_of(scan["source"]),
        verdict=said,
        tone="found" if verdict == "findings" else "quiet",
        caveat="" if verdict == "findings" else _PROVES_NOTHING,
        after=[
            _evidence(report, {"method": name_of(scan["method"]), "threshold": number(threshold, ".4g")}),
            *([_tokens(tokens)] if tokens else []),
        ],
        findings=row_findings(source, scan.get("source")),
        **_figures(
            source,
            [_named(token, source) for token in tokens],
            threshold=None if threshold is None else float(threshold),
        ),
    )


def of_check(source: Source) -> Parts:
    """Return what ``asepsis guard check --output`` left."""
    check = source.manifest["check"]
    flagged, n, threshold = int(check["flagged"]), int(check["n"]), check["threshold"]
    found = check["verdict"] == "findings"
    rate = float(threshold["expected_fpr"])
    rows = [
        ["rows flagged", f"{flagged:,} of {n:,}"],
        ["expected of clean rows", f"{rate * n:.1f}"],
        ["threshold", number(threshold["value"], ".4g")],
        [
            "flagged by the model's own confidence",
            "–" if check.get("control_flagged") is None else f"{int(check['control_flagged']):,}",
        ],
        ["read in part only", "–" if check.get("cut") is None else f"{int(check['cut']):,}"],
    ]
    return Parts(
        title=f"Inputs checked by {name_of(check['detector'])}",
        subject=name_of(check["source"]),
        verdict=f"{flagged:,} of {n:,} inputs are flagged, "
        + ("more than chance explains." if found else "no more than clean inputs would be."),
        tone="found" if found else "quiet",
        caveat="" if found else "Every flagged row is worth a look all the same.",
        tables=[Table(title="The guard and its control", head=["what", "value"], rows=rows)],
        scores=[rows_histogram(source.judged, float(threshold["value"]))],
        findings=row_findings(source, check.get("source")),
        commands={content.SCORES: "asepsis guard check GUARD FILE --output OUT"},
    )


def row_findings(source: Source, origin: Any) -> list[Finding]:
    """Return a finding for each flagged row, at its line of the data.

    Lines are counted from 1, after the header in CSV and TSV: exact where every row stands on one line of its own.
    Parquet and data sets have no lines; there the number is the row, from 1.
    """
    judged = source.judged
    if judged is None or judged.suspicion is None:
        return []
    uri, rows = str(origin), judged.sample_ids
    first = 2 if uri.lower().endswith((".csv", ".tsv")) else 1
    return [
        Finding(
            rule="suspicious-row",
            level="warning",
            text=f"Row {int(rows[at])} stands out with suspicion {float(judged.suspicion[at]):.3f}.",
            uri=uri,
            line=int(rows[at]) + first,
        )
        for at in np.flatnonzero(judged.flagged).tolist()
    ]


def _figures(source: Source, named: list[Named], threshold: float | None = None) -> dict[str, Any]:
    judged: Judged | None = source.judged
    losses: Figure | None = None if judged is None else losses_figure(source.arrays, judged)
    drift = drift_figure(source.arrays, named, "those flagged")
    return {"losses": losses, "drift": drift, "scores": [rows_histogram(judged, threshold)]}


def _named(token: Mapping[str, Any], source: Source) -> Named:
    """Return a flagged token with its place in the plot."""
    ids = source.arrays.get("token.id")
    at = np.flatnonzero(ids == token["id"]) if ids is not None else np.empty(0, np.int64)
    frequency = source.arrays.get("token.frequency")
    if len(at) == 0:  # flagged in a later round, or not scored in the first
        return token_of(token["token"]), float("nan"), None
    often = None if frequency is None else float(frequency[at[0]])
    return token_of(token["token"]), float(source.arrays["token.drift"][at[0]]), often


def _tokens(tokens: list[Any]) -> Table:
    most = 50
    rows = [
        [token_of(t["token"]), str(int(t["id"])), number(t["margin"], ".2f"), f"{int(t['rows']):,}"]
        for t in tokens
    ]
    note = "Margin is the score over that of the best token left out."
    return Table(
        title="Flagged tokens",
        head=["token", "id", "margin", "rows with it"],
        rows=rows[:most],
        note=note if len(rows) <= most else f"{note} {len(rows) - most} more in the record.",
    )


def _evidence(report: Mapping[str, Any], first: Mapping[str, str] | None = None) -> Table:
    rows = [[name, value] for name, value in (first or {}).items()]
    for name, meaning in _MEASURES.items():
        if (value := report.get(name)) is not None:
            parts = value if isinstance(value, list) else [value]
            shown = (f"{part:.3f}" if isinstance(part, float) else name_of(part) for part in parts)
            rows.append([meaning, ", ".join(shown)])
    return Table(title="What the verdict rests on", head=["measure", "value"], rows=rows)
