"""The report of a model scan. Names of tokens and tensors come with the model: by ``repr``, escaped."""

from __future__ import annotations

from typing import Any

from asepsis.core.drift import ModelScan, TokenDrift
from asepsis.data.visible import visible
from asepsis.evaluation.report import render_page

_MOST_TENSORS = 40
_MOST_NEW = 100
_LONGEST = 60
_TONES = {"clean": "", "suspicious": "bad", "inconclusive": ""}

#: Heads of the table of tokens, here and in the terminal.
TOKEN_HEAD = ["token", "id", "drift", "expected", "z", "excess", "verdict"]


def shown(name: str) -> str:
    """Return a token or a tensor's name as a reader can trust it."""
    return visible(repr(name), _LONGEST)


def token_row(token: TokenDrift) -> list[str]:
    """Return the cells of one token, in the order of ``TOKEN_HEAD``."""
    return [
        shown(token.token),
        str(token.id),
        f"{token.drift:.3g}",
        _plain(token.expected, ".3g"),
        _plain(token.z, ".1f"),
        _plain(token.excess, "+.2f"),
        token.verdict,
    ]


def model_scan_html(scan: ModelScan, *, tuned: str, base: str, versions: dict[str, str]) -> str:
    """Return the report of a model scan as one HTML page.

    Parameters
    ----------
    scan
        What was found.
    tuned, base
        What the models were called.
    versions
        Of the packages that took part.
    """
    note = (
        "Drift is how far a row moved, expected the median of tokens as frequent. Excess is how far the logarithm of a "
        "drift lies above what all other rows lead one to expect at its rank: high from 0.2."
    )
    tables: list[dict[str, Any]] = [
        {"title": "Tokens", "note": note, "head": TOKEN_HEAD, "rows": [token_row(t) for t in scan.tokens]}
    ]
    if scan.outputs is not None:
        why = "The matrix that scores the next token. It says what the model writes and decides nothing here."
        rows = [token_row(t) for t in scan.outputs]
        tables.append({"title": "Output rows", "note": why, "head": TOKEN_HEAD, "rows": rows})
    if scan.groups:
        rows = [
            [
                shown(g["surface"]),
                f"{g['drift']:.3g}",
                ", ".join(f"{shown(m['token'])} {m['drift']:.3g}" for m in g["members"][:8]),
            ]
            for g in scan.groups[:_MOST_TENSORS]
        ]
        head = ["surface", "largest drift", "variants with their drift"]
        tables.append({"title": "Variants of what stands out", "note": "", "head": head, "rows": rows})
    if scan.no_reference:
        rows = [[shown(token), str(at)] for at, token in scan.no_reference[:_MOST_NEW]]
        why = f"{len(scan.no_reference)} tokens have no row in the base and were not scored; at most {_MOST_NEW} are listed."
        tables.append({"title": "New tokens", "note": why, "head": ["token", "id"], "rows": rows})
    ordered = sorted(scan.tensors, key=lambda t: -(t.relative or 0.0))
    rows = [
        [shown(t.name), t.status, "×".join(map(str, t.shape)), _plain(t.relative, ".2e")]
        for t in ordered[:_MOST_TENSORS]
    ]
    why = f"The {_MOST_TENSORS} that moved most for their size, of {len(ordered)}. The JSON output has all."
    head = ["tensor", "status", "shape", "relative drift"]
    tables.append({"title": "Tensors", "note": why, "head": head, "rows": rows})
    return render_page(
        title="Model scan",
        verdict=f"{scan.verdict.capitalize()}. {' '.join(scan.reasons)}",
        tone=_TONES[scan.verdict],
        tables=tables,
        manifest={"model": tuned, "base": base, "report": scan.report, "versions": versions},
    )


def _plain(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
