"""Folders about weights: scans of a model against its base, and repaired models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asepsis.evaluation.report import content
from asepsis.evaluation.report.content import Finding, Table, Tone, number
from asepsis.evaluation.report.folder import Source
from asepsis.evaluation.report.parts import Parts
from asepsis.evaluation.report.sections import Named, counted, drift_figure, name_of, token_of

#: Heads of the table of tokens, here and in the terminal.
TOKEN_HEAD = ["token", "id", "drift", "expected", "z", "excess", "verdict"]
_MOST_TOKENS, _NEIGHBORS, _MOST_TENSORS, _MOST_NEW = 100, 6, 12, 50
_STANDS_OUT = ("high", "elevated")


def token_row(token: Mapping[str, Any]) -> list[str]:
    """Return the cells of one token of ``scan model``'s JSON, in the order of ``TOKEN_HEAD``."""
    return [
        token_of(token["token"]),
        str(int(token["id"])),
        number(token["drift"], ".3g"),
        number(token["expected"], ".3g"),
        number(token["z"], ".1f"),
        number(token["excess"], "+.2f"),
        name_of(token["verdict"]),
    ]


def of_model_scan(source: Source) -> Parts:
    """Return what ``asepsis scan model --output`` left."""
    scan = source.manifest["scan"]
    tokens: list[Any] = scan["tokens"]
    found = [token for token in tokens if token["verdict"] in _STANDS_OUT]
    named: list[Named] = [
        (token_of(t["token"]), float(t["drift"]), (t.get("scores") or {}).get("frequency")) for t in found
    ]
    tones: dict[str, Tone] = {"suspicious": "found", "clean": "quiet", "inconclusive": "quiet"}
    tone = tones[scan["verdict"]]
    return Parts(
        title="Model scan",
        subject=f"{name_of(source.manifest['model'])} against {name_of(source.manifest['base'])}",
        verdict=f"{scan['verdict'].capitalize()}. {' '.join(name_of(reason, 400) for reason in scan['reasons'])}",
        tone=tone,
        drift=drift_figure(source.arrays, named, "those that stand out"),
        after=_tables(scan),
        findings=[
            Finding(
                rule="suspicious-token",
                level="warning" if token["verdict"] == "high" else "note",
                text=f"The embedding of token {token_of(token['token'])} (id {int(token['id'])}) moved by "
                f"{number(token['drift'], '.3g')}; {number(token['expected'], '.3g')} was expected.",
                uri=str(source.manifest["model"]),
            )
            for token in found
        ],
        commands={
            content.DRIFT: "asepsis scan model DIR --base BASE, with a base from which the embeddings moved"
        },
    )


def _tables(scan: Mapping[str, Any]) -> list[Table]:
    note = (
        "Drift is how far a row moved, expected the median of tokens as frequent. Excess is how far the logarithm of a "
        "drift lies above what all other rows lead one to expect at its rank: high from 0.2."
    )
    found = [_token_table("Tokens", scan["tokens"], note)]
    if scan["outputs"] is not None:
        why = "The matrix that scores the next token. It says what the model writes and decides nothing here."
        found.append(_token_table("Output rows", scan["outputs"], why))
    if scan["groups"]:
        rows = [
            [
                token_of(group["surface"]),
                number(group["drift"], ".3g"),
                ", ".join(
                    f"{token_of(m['token'])} {number(m['drift'], '.3g')}" for m in group["members"][:8]
                ),
            ]
            for group in scan["groups"][:_MOST_TENSORS]
        ]
        head = ["surface", "largest drift", "variants with their drift"]
        found.append(Table(title="Variants of what stands out", head=head, rows=rows, words=3))
    if new := scan["no_reference"]:
        rows = [[token_of(one["token"]), str(int(one["id"]))] for one in new[:_MOST_NEW]]
        why = (
            f"{len(new)} tokens have no row in the base and were not scored; at most {_MOST_NEW} are listed."
        )
        found.append(Table(title="New tokens", head=["token", "id"], rows=rows, note=why))
    tensors = sorted(scan["tensors"], key=lambda t: -(t["relative"] or 0.0))
    rows = [
        [
            token_of(t["name"]),
            name_of(t["status"]),
            "×".join(str(int(size)) for size in t["shape"]),
            number(t["relative"], ".2e"),
        ]
        for t in tensors[:_MOST_TENSORS]
    ]
    why = f"The {len(rows)} that moved most for their size, of {len(tensors)}. The JSON output has all."
    head = ["tensor", "status", "shape", "relative drift"]
    return [*found, Table(title="Tensors", head=head, rows=rows, note=why)]


def _token_table(title: str, tokens: Sequence[Any], note: str) -> Table:
    above = sum(token["verdict"] in _STANDS_OUT for token in tokens)
    listed = tokens[: min(_MOST_TOKENS, above + _NEIGHBORS)]
    more = (
        f" The next {len(tokens) - len(listed)} are in the JSON output." if len(tokens) > len(listed) else ""
    )
    return Table(title=title, head=TOKEN_HEAD, rows=[token_row(token) for token in listed], note=note + more)


def of_purified(source: Source) -> Parts:
    """Return what ``asepsis purify`` left."""
    reports: dict[str, Any] = source.manifest["report"]
    said, tables, after = [], [], []
    named: list[Named] = []
    reset: list[Any] = []
    unmixed = False
    for name, report in reports.items():
        if isinstance(report.get("reset"), list):
            reset = report["reset"]
            said.append(
                f"{name_of(name)} put the embeddings of {counted(len(reset), 'token')} back to the base's."
            )
            named = [(token_of(t["token"]), float(t["drift"]), t.get("frequency")) for t in reset]
            after.append(_reset_table(reset))
        elif isinstance(report.get("final"), dict):
            unmixed = report["verdict"] == "unmixed"
            said.append(
                f"{name_of(name)} found no ratio at which mixing keeps the accuracy: this is fine-tuning on clean rows, no more."
                if unmixed
                else f"{name_of(name)} kept {float(report['reserve_ratio']):.0%} of the model's weights and took the rest from "
                "the base."
            )
            tables.append(_mixing_table(report))
        else:
            said.append(f"{name_of(name)} ran.")
    return Parts(
        title=f"Repair by {' and '.join(map(name_of, reports))}",
        verdict=" ".join(said),
        tone="found" if unmixed else "quiet",
        caveat="What was reset or mixed is no evidence that the model was poisoned.",
        tables=tables,
        drift=drift_figure(source.arrays, named, "those put back"),
        after=after,
        findings=[
            Finding(
                rule="suspicious-token",
                level="note",
                text=f"The embedding of token {token_of(token['token'])} (id {int(token['id'])}) was put back to the base's.",
                uri=str(source.manifest["model"]),
            )
            for token in reset
        ],
        commands={
            content.DRIFT: "asepsis purify --defense epur,finemixing, or asepsis scan model DIR --base BASE --output OUT"
        },
    )


def _reset_table(reset: Sequence[Any]) -> Table:
    rows = [
        [
            token_of(t["token"]),
            str(int(t["id"])),
            number(t["drift"], ".3g"),
            number(t["frequency"], ".3g"),
            number(t["score"], ".3g"),
        ]
        for t in reset[:_MOST_TOKENS]
    ]
    more = f" {len(reset) - _MOST_TOKENS} more in the record." if len(reset) > _MOST_TOKENS else ""
    return Table(
        title="Tokens put back",
        head=["token", "id", "drift", "frequency", "score"],
        rows=rows,
        note=f"Frequency is expected in ten million tokens of clean text.{more}",
    )


def _mixing_table(report: Mapping[str, Any]) -> Table:
    accurate = report["final"]["accuracy"] is not None
    what = "accuracy" if accurate else "loss"
    rows = [["the model as it came", number(report["victim"][what])]]
    for trial in report["tried"]:
        kept = " (kept)" if trial["reserve_ratio"] == report["reserve_ratio"] else ""
        rows.append([f"{float(trial['reserve_ratio']):.0%} of its weights{kept}", number(trial[what])])
    return Table(
        title="What mixing costs",
        head=["model", f"{what} on held-out clean rows"],
        rows=rows,
        note=f"{int(report['final']['rows'])} clean rows were held out; each ratio is the mean over its masks.",
    )
