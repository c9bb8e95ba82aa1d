"""The tables of ``psim_sst2.py``'s cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from asepsis.evaluation.grid.table import spread

STRATEGIES = ("none", "full", "lora", "prompt_tuning", "p_tuning", "prefix_tuning")
RATES = (0.01, 0.05)
SUMMARIZED = ("psim", "confidence", "rap", "strip", "onion")

Key = tuple[str, str, str, int]  # stage, detector or strategy, attack, seed
Cells = dict[Key, dict[str, Any]]


def bits(flags: np.ndarray) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def array(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


def render(folder: Path, attacks: Sequence[str]) -> None:
    """Print what each detector flags of each victim, then what adapted models answer behind each."""
    by, seeds, detectors = read(folder)
    attacks = [attack for attack in attacks if any(key[2] == attack for key in by)]
    print(
        "| attack | detector | seeds | failed | AUROC | TPR at 1 % FPR | at | clean flagged | triggered flagged |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for attack, name, rate in product(attacks, detectors, [*map(str, RATES), "reference"]):
        found = [by[key] for seed in seeds if (key := ("scores", name, attack, seed)) in by]
        fitted = [c for c in found if "error" not in c and at_rate(c, rate)]
        if not fitted:
            continue
        failed = sum("error" in c for c in found)
        pair = [[array(at_rate(c, rate)[k]).mean() for c in fitted] for k in ("clean", "triggered")]
        areas, tprs = [c["auroc"] for c in fitted], [c["tpr_at_1_fpr"] for c in fitted]
        print(
            f"| {attack} | {name} | {len(fitted)} | {failed} | {spread(areas)} | {spread(tprs)} | {rate} | "
            f"{spread(pair[0])} | {spread(pair[1])} |"
        )
    print("\n| attack | adapted by | guard | seeds | CACC | ASR |\n|---|---|---|---|---|---|")
    for attack in attacks:
        if floors := [by[key] for seed in seeds if (key := ("floor", "clean", attack, seed)) in by]:
            numbers = " | ".join(spread([array(c[k]).mean() for c in floors]) for k in ("right", "hit"))
            print(f"| {attack} | (the clean-only model) | none | {len(floors)} | {numbers} |")
    for attack, strategy, name in product(attacks, STRATEGIES, ["none", *detectors]):
        if both := list(pairs(by, strategy, name, attack, seeds)):
            numbers = " | ".join(spread([pair[k] for pair in both]) for k in (0, 1))
            print(f"| {attack} | {strategy} | {name} | {len(both)} | {numbers} |")


def summary(folder: Path, attacks: Sequence[str]) -> None:
    """Print a line for each attack: means over seeds, ASR the largest of the adaptations'."""
    by, seeds, _ = read(folder)
    print(f"| attack | floor | ASR | {' | '.join(SUMMARIZED)} |\n|---|---|---|{'---|' * len(SUMMARIZED)}")
    for attack in attacks:
        if not any(key[2] == attack for key in by):
            continue
        floors = [by[key] for seed in seeds if (key := ("floor", "clean", attack, seed)) in by]
        columns = [f"{np.mean([array(c['hit']).mean() for c in floors]):.3f}" if floors else ""]
        for name in ("none", *SUMMARIZED):
            rates = [
                np.mean([asr for _, asr in found])
                for strategy in STRATEGIES
                if (found := list(pairs(by, strategy, name, attack, seeds)))
            ]
            areas = [
                by[key]["auroc"]
                for seed in seeds
                if (key := ("scores", name, attack, seed)) in by and "error" not in by[key]
            ]
            if name == "none":
                columns.append(f"{min(rates):.3f} to {max(rates):.3f}" if rates else "")
            else:
                numbers = [np.mean(areas)] if areas else []
                columns.append(", ".join(f"{number:.3f}" for number in (*numbers, *sorted(rates)[-1:])))
        print(f"| {attack} | {' | '.join(columns)} |")


def read(folder: Path) -> tuple[Cells, list[int], list[str]]:
    """Return the cells by key, their seeds and their detectors."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]
    by = {(c["stage"], c["name"], c["attack"], c["seed"]): c for c in cells}
    return by, sorted({key[3] for key in by}), sorted({key[1] for key in by if key[0] == "scores"})


def at_rate(cell: dict[str, Any], rate: str) -> Any:
    return cell["reference"] if rate == "reference" else cell["rates"].get(rate)


def pairs(
    by: Cells, strategy: str, name: str, attack: str, seeds: Sequence[int]
) -> Iterator[tuple[float, float]]:
    """Yield by seed CACC and ASR of an adapted model behind a guard at the larger rate: what is flagged is not answered."""
    for seed in seeds:
        model, guard = by.get(("adapted", strategy, attack, seed)), by.get(("scores", name, attack, seed))
        if model is None or (name != "none" and (guard is None or "error" in guard)):
            continue
        right, hit = array(model["right"]), array(model["hit"])
        if guard is not None:
            flags = guard["rates"][str(RATES[-1])]
            # a slow detector may have been asked about fewer rows: the first
            right, hit = (
                rows[: len(flag)] & ~flag
                for rows, flag in ((right, array(flags["clean"])), (hit, array(flags["triggered"])))
            )
        yield float(right.mean()), float(hit.mean())
