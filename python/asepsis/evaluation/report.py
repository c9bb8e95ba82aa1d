"""Reports: one offline HTML file without script, and SARIF for code scanning.

Texts come from the attacker: everything is escaped, and characters that hide or reorder text are shown by code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from asepsis.data.visible import visible
from asepsis.errors import AsepsisError
from asepsis.training.scan import Scan

_MOST_ROWS = 200

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; --bad: #b3261e; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7bd88f; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { overflow-wrap: anywhere; min-width: 14rem; }
.verdict { font-size: 1.15rem; border-left: .3rem solid; padding-left: .8rem; }
.bad { color: var(--bad); } .good { color: var(--good); }
svg { width: 100%; height: auto; } svg rect.c { fill: #8889; } svg rect.f { fill: var(--bad); }
svg text { font-size: 11px; fill: currentColor; } details { margin: 1rem 0; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .6rem; font-size: .85rem; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="verdict {{ tone }}">{{ verdict }}</p>
{% for table in tables %}<h2>{{ table.title }}</h2>
{% if table.note %}<p>{{ table.note }}</p>{% endif %}
<div class="scroll"><table><tr>{% for h in table.head %}<th class="{{ 'n' if not loop.first else '' }}">{{ h }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td class="{{ 'n' if not loop.first else '' }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endfor %}
{% if bars %}<h2>Suspicion of every row</h2>
<p>Higher is worse; flagged rows in red. Bar heights are square roots of counts, so that few rows can be seen beside many.</p>
<svg viewBox="0 0 640 190" role="img" aria-label="histogram of suspicion">
{% for b in bars %}<rect class="{{ b.kind }}" x="{{ b.x }}" y="{{ b.y }}" width="{{ b.w }}" height="{{ b.h }}"><title>{{ b.count }} rows</title></rect>
{% endfor %}<text x="4" y="186">{{ low }}</text><text x="636" y="186" text-anchor="end">{{ high }}</text></svg>{% endif %}
{% if flagged %}<h2>Most suspicious rows</h2>
<p>{{ flagged_note }} Invisible and reordering characters are shown by their code.</p>
<div class="scroll"><table><tr><th class="n">row</th><th class="n">suspicion</th><th>label</th><th>text</th></tr>
{% for r in flagged %}<tr><td class="n">{{ r.row }}</td><td class="n">{{ r.suspicion }}</td><td>{{ r.label }}</td><td class="t">{{ r.text }}</td></tr>
{% endfor %}</table></div>{% endif %}
<h2>Settings and versions</h2><details><summary>Everything the run recorded</summary><pre>{{ manifest }}</pre></details>
</body></html>
"""


def scan_html(scan: Scan, metrics: dict[str, float | None] | None = None) -> str:
    """Return the report of a data scan as one HTML page."""
    report = scan.manifest.get("report", {})
    tables = [
        {
            "title": "Evidence",
            "note": "Separation is Otsu's separability of the suspicion inside one class: about 0.64 for one lump.",
            "head": ["what", "value"],
            "rows": [
                ["method", scan.method],
                ["rows", len(scan.data)],
                ["flagged", int(scan.flagged.sum())],
                ["threshold", _number(scan.threshold)],
                *[[name.replace("_", " "), _plain(report[name])] for name in _SHOWN if name in report],
            ],
        }
    ]
    if metrics is not None:
        tables.append(
            {
                "title": "Against the answer key",
                "note": "",
                "head": ["measure", "value"],
                "rows": [[name, _number(value)] for name, value in metrics.items()],
            }
        )
    return render_page(
        title="Data scan",
        verdict=_VERDICTS[scan.verdict].format(flagged=int(scan.flagged.sum()), n=len(scan.data)),
        tone="bad" if scan.verdict == "findings" else "",
        tables=tables,
        scan=(scan.suspicion, scan.flagged),
        flagged=_rows(scan.data, scan.suspicion, scan.flagged),
        manifest=scan.manifest,
    )


def demo_html(
    rows: Sequence[dict[str, Any]], verdict: str, manifest: dict[str, Any], data: Any, outcome: Any
) -> str:
    """Return the report of ``asepsis demo``: the control table first, then what was isolated."""
    head = ["model", "clean accuracy", "95 % interval", "attack success", "95 % interval"]
    body = []
    for row in rows:
        clean, attack = row["clean_accuracy"], row["attack_success_rate"]
        body.append(
            [row["defense"], _number(clean["value"]), _range(clean), _number(attack["value"]), _range(attack)]
        )
    flagged = np.isin(data.sample_ids, outcome.flagged)
    return render_page(
        title="asepsis demo: a backdoor, with and without a defense",
        verdict=verdict,
        tone="good",
        tables=[{"title": "The same data, three trainings", "note": "", "head": head, "rows": body}],
        scan=(outcome.suspicion, flagged),
        flagged=_rows(data, outcome.suspicion, flagged),
        manifest=manifest,
    )


def scan_sarif(scan: Scan, uri: str) -> dict[str, Any]:
    """Return flagged rows as SARIF 2.1.0.

    Lines are counted from 1, after the header in CSV and TSV: exact where every row stands on one line of its own.
    Parquet has no lines; there the number is the row, from 1.
    """
    from asepsis import __version__

    first = 2 if uri.lower().endswith((".csv", ".tsv")) else 1

    results = [
        {
            "ruleId": "suspicious-row",
            "level": "warning",
            "message": {
                "text": f"row {row} stands out with suspicion {float(scan.suspicion[row]):.3f} ({scan.method})"
            },
            "locations": [
                {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": row + first}}}
            ],
        }
        for row in np.flatnonzero(scan.flagged).tolist()
    ]
    rule = {"id": "suspicious-row", "shortDescription": {"text": "Training row that looks poisoned"}}
    driver = {"name": "asepsis", "version": __version__, "rules": [rule]}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


_VERDICTS = {
    "findings": "{flagged} of {n} rows stand out and should not be trained on.",
    "none": "No row of {n} stands out by this method. That does not prove that none is poisoned.",
    "inconclusive": "The evidence is too weak to decide about {n} rows.",
}
_SHOWN = (
    "separation",
    "separation_wanted",
    "recognized",
    "label",
    "chosen_step",
    "agreement_of_neighbors",
    "nan_losses",
)


def render_page(
    *,
    title: str,
    verdict: str,
    tone: str,
    tables: list[dict[str, Any]],
    manifest: dict[str, Any],
    scan: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None,
    flagged: Sequence[dict[str, Any]] = (),
) -> str:
    """Return a page: the verdict, tables of text, the histogram of a data scan and its rows, what the run recorded.

    Everything is escaped; characters that hide are the caller's to make :func:`visible`.
    """
    import json

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    bars, low, high = ([], "", "") if scan is None else _bars(*scan)
    page = environment.from_string(_PAGE).render(
        title=title,
        verdict=verdict,
        tone=tone,
        tables=tables,
        bars=bars,
        low=low,
        high=high,
        flagged=list(flagged),
        flagged_note=f"At most {_MOST_ROWS} are listed, most suspicious first.",
        manifest=visible(json.dumps(manifest, indent=1, default=str), 100_000).replace("<U+000A>", "\n"),
    )
    if len(page.encode()) > 2_000_000:
        raise AsepsisError("the report would pass 2 MB; this is a fault of asepsis")
    return page


def _bars(
    suspicion: NDArray[np.float32], flagged: NDArray[np.bool_]
) -> tuple[list[dict[str, Any]], str, str]:
    edges = np.histogram_bin_edges(suspicion, bins=64)
    counts = [np.histogram(suspicion[part], edges)[0] for part in (~flagged, flagged)]
    top = np.sqrt(max(1, max(c.max() for c in counts)))
    bars = []
    for kind, column in zip("cf", counts, strict=True):
        for i, count in enumerate(column.tolist()):
            if count:
                height = round(160 * float(np.sqrt(count) / top), 1)
                bars.append(
                    {"kind": kind, "x": i * 10, "y": 170 - height, "w": 9, "h": height, "count": count}
                )
    return bars, f"{edges[0]:.2f}", f"{edges[-1]:.2f}"


def _rows(data: Any, suspicion: NDArray[np.float32], flagged: NDArray[np.bool_]) -> list[dict[str, Any]]:
    order = np.argsort(-suspicion, kind="stable")
    listed = order[flagged[order]][:_MOST_ROWS] if flagged.any() else order[:20]
    return [
        {
            "row": int(row),
            "suspicion": f"{float(suspicion[row]):.3f}",
            "label": "" if data.labels is None else int(data.labels[row]),
            "text": visible(data.texts[int(row)]),
        }
        for row in listed
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(proportion: dict[str, float]) -> str:
    return f"{proportion['low']:.3f}–{proportion['high']:.3f}"


def _plain(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else visible(str(value))
