"""What the weight benches share: ranks of trigger tokens in a scan, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _sst2 import spread

import asepsis


def tokens_ranked(folder: Path, *, base: str, words: list[str]) -> dict[str, Any]:
    """The scan's verdict, and the rank of each word's token by each of the scan's scores (1 is the most suspicious)."""
    scan = asepsis.scan_model(folder, base=base, top=10**9)
    ranks: dict[str, dict[str, int]] = {}
    for score in scan.tokens[0].scores if scan.tokens else ():
        ordered = sorted(scan.tokens, key=lambda token: (-token.scores[score], token.id))
        for place, token in enumerate(ordered, start=1):
            if token.token in words:
                ranks.setdefault(token.token, {})[score] = place
    return {"verdict": scan.verdict, "ranks": ranks, "ranked": len(scan.tokens)}


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
        print("\n| model | seed | verdict | rank of each trigger token by score |\n|---|---|---|---|")
    for cell in scans:
        ranks = "; ".join(
            f"{word}: " + ", ".join(f"{score} {place}" for score, place in places.items())
            for word, places in cell["ranks"].items()
        )
        print(f"| {cell['attack']} | {cell['seed']} | {cell['verdict']} | {ranks} |")
