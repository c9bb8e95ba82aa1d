"""What the weight benches share: ranks of trigger tokens in a scan, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asepsis
from asepsis.evaluation.grid.table import spread


def tokens_ranked(folder: Path, *, base: str) -> dict[str, Any]:
    """The scan's verdict, and the rank of each trigger token by each score, 1 being the most suspicious.

    A token that no score counts (its row did not move) has no rank. A clean model has no trigger and no ranks.
    """
    scan = asepsis.scan_model(folder, base=base)
    tokens = json.loads((folder / "asepsis.json").read_text()).get("trigger_tokens", {})
    ranks: dict[str, dict[str, int]] = {}
    for score in scan.scores:
        order = scan.flagged_ids(len(scan.eligible), score)
        place = {int(token): rank for rank, token in enumerate(order, start=1)}
        for word, ids in tokens.items():
            for token in ids:
                if token in place:
                    name = word if len(ids) == 1 else f"{word} ({token})"
                    ranks.setdefault(name, {})[score] = place[token]
    high = [token.token for token in scan.tokens if token.verdict == "high"]
    return {
        "verdict": scan.verdict,
        "ranks": ranks,
        "high": high,
        "moved": scan.report["moved"],
        "frequencies": scan.report["frequencies"],
    }


def render(folder: Path, attacks: list[str], stages: tuple[str, ...]) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]
    floors: dict[str, list[float]] = {}
    for cell in cells:
        if cell["stage"] == "clean" and cell["attack"] == "sst2":
            for attack, rate in cell["floor"].items():
                floors.setdefault(attack, []).append(rate["value"])
    print("| attack | model | seeds | CACC | ASR | clean-only floor |\n|---|---|---|---|---|---|")
    for attack in attacks:
        for stage in stages:
            rows = [
                c for c in cells if (c["stage"], c["attack"]) == (stage, attack) and "clean_accuracy" in c
            ]
            if rows:
                names = ("clean_accuracy", "attack_success_rate")
                pair = " | ".join(spread([row[name]["value"] for row in rows]) for name in names)
                print(f"| {attack} | {stage} | {len(rows)} | {pair} | {spread(floors.get(attack, []))} |")
    clean = sorted({c["attack"] for c in cells if c["stage"] == "clean"})
    print("\n| clean model | seeds | accuracy |\n|---|---|---|")
    for name in clean:
        values = [c["clean_accuracy"]["value"] for c in cells if (c["stage"], c["attack"]) == ("clean", name)]
        print(f"| {name} | {len(values)} | {spread(values)} |")
    scans = [c for c in cells if c["stage"] == "scan"]
    if scans:
        print(
            "\n| model | seed | verdict | high | rank of each trigger token by score |\n|---|---|---|---|---|"
        )
    for cell in scans:
        ranks = "; ".join(
            f"{word}: " + ", ".join(f"{score} {place}" for score, place in places.items())
            for word, places in cell["ranks"].items()
        )
        high = ", ".join(cell["high"][:8]) + (", ..." if len(cell["high"]) > 8 else "")
        print(f"| {cell['attack']} | {cell['seed']} | {cell['verdict']} | {high} | {ranks} |")
