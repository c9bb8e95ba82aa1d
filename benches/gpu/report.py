"""The results of a run as one page and one picture: ``<date>-<commit>.md`` and ``<date>-<commit>-goals.svg``.

    python -m benches.gpu.report benches/results/nvidia-h200/2026-11-21-abc1234-*.json

``python -m benches.gpu`` writes both when it is done. The picture shows each goal's ratio over what was wanted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write(results: Mapping[str, Row], about: Row, folder: Path) -> list[Path]:
    """Write page and picture of the results, by bench, and return their paths."""
    stem = f"{about['date']}-{about['commit']}"
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{stem}-goals.svg"
    written = []
    if list(goals(results)):
        picture.write_text(drawn(results), encoding="utf-8")
        written.append(picture)
    made = folder / f"{stem}.md"
    made.write_text(page(results, about, picture.name if written else None), encoding="utf-8")
    return [made, *written]


def page(results: Mapping[str, Row], about: Row, picture: str | None = None) -> str:
    """Return the page: what ran where, what was wrong, goals, times, what was not compared, what was not reached."""
    lines = [f"# {about['device']}, {about['date']}", ""]
    lines += [
        ", ".join(f"{key} {value}" for key, value in about.items() if key not in ("device", "date")),
        "",
    ]
    checks = [check for result in results.values() for check in result["checks"]]
    wrong = [check for check in checks if not check["passed"]]
    lines += [
        f"{len(checks) - len(wrong)} of {len(checks)} checks passed; times are medians in microseconds.",
        "",
    ]
    lines += [f"* **WRONG** {c['name']}: error {c['error']}, allowed {c['allowed']}" for c in wrong]
    lines += ["", "## Goals", ""]
    lines += [f"![goals]({picture})", ""] if picture else []
    table = [
        [
            r["goal"],
            case,
            r["mode"],
            f"{r['of']} / {r['to']}",
            f"{r['ratio']:.3g}",
            r["wanted"],
            "yes" if r["met"] else "**no**",
        ]
        for case, r in goals(results)
    ]
    lines += _table(["goal", "case", "mode", "ratio of", "found", "wanted", "met"], table)
    for bench, result in results.items():
        lines += ["", f"## {bench}", ""]
        times = [
            [row["name"], mode, *_sides(sides)]
            for row in result["rows"]
            for mode, sides in row.get("sides", {}).items()
        ]
        lines += _table(["case", "mode", "times"], times)
        values = [
            [row["name"], k, str(v)] for row in result["rows"] for k, v in row.get("values", {}).items()
        ]
        lines += ["", *_table(["probe", "what", "found"], values)] if values else []
        lines += [
            "",
            *(f"* **ERROR** {row['name']}: {row['error']}" for row in result["rows"] if "error" in row),
        ]
        if result["not_reached"]:
            lines += ["", f"Not reached: {', '.join(result['not_reached'])}."]
    return "\n".join(lines).rstrip() + "\n"


def goals(results: Mapping[str, Row]) -> Iterator[tuple[str, Row]]:
    """Every ratio that has a goal, with its case."""
    for result in results.values():
        for row in result["rows"]:
            for ratio in row.get("ratios", ()):
                yield row["name"], ratio


def drawn(results: Mapping[str, Row]) -> str:
    """Return a bar for each goal: 1 is what was wanted, longer is better, cut at 2."""
    rows = [(f"{r['goal']} {case} [{r['mode']}]", _over(r), bool(r["met"])) for case, r in goals(results)]
    unit, left, step = 200, 460, 18
    height = step * len(rows) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 2 * unit + 60}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<line x1="{left + unit}" y1="0" x2="{left + unit}" y2="{height - 20}" stroke="black"/>',
        f'<text x="{left + unit}" y="{height - 6}" text-anchor="middle">wanted</text>',
    ]
    for i, (label, over, met) in enumerate(rows):
        y, length = step * i + 3, unit * min(over, 2.0)
        color = "#2a7f3f" if met else "#b03030"
        lines.append(f'<text x="{left - 6}" y="{y + 10}" text-anchor="end">{escape(label)}</text>')
        lines.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="12" fill="{color}"/>')
        lines.append(f'<text x="{left + length + 4:.1f}" y="{y + 10}">{over:.2f}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _over(ratio: Row) -> float:
    kind, bound = ratio["wanted"].rsplit(" ", 1)
    found, wanted = max(float(ratio["ratio"]), 1e-9), float(bound)
    return found / wanted if kind == "at least" else wanted / found


def _sides(sides: Row) -> list[str]:
    return [", ".join(f"{name} {side['median_us']:.1f}" for name, side in sides.items())]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["Nothing was measured."]
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def main(paths: Sequence[str]) -> int:
    """Write page and picture again from the files of one run."""
    read = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    found = {r["bench"]: r for r in read if "checks" in r}
    if not found:
        print("benches.gpu.report: none of these files is a result of benches.gpu", file=sys.stderr)
        return 2
    about = next(iter(found.values()))["machine"]
    for path in write(found, about, Path(paths[0]).parent):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
