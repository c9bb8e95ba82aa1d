"""BTU on the four poisoned SST-2 sets released with the MuScleLoRA paper, stage by stage, beside its controls.

    python benches/btu_sst2.py run --data FOLDER --output CELLS [--variants robust reference] [--seeds 0 1 2]
    python benches/btu_sst2.py render --output CELLS --controls ABL_CELLS > TABLE.md

FOLDER as for ``abl_sst2.py``, with ``dev_clean.jsonl`` beside: the clean rows that tune at the end are drawn from it by the
seed. Attack ``clean`` is the control without poison: the rows of one attack's set that its key calls clean; what is
flagged there is lost for nothing. The undefended and the clean-only model are those of ``abl_sst2.py``. Every cell measures the
model before the edit, after it, and after tuning; the first two do not depend on the clean rows, but for ``calibrated``.
Each cell (variant, attack, seed) is one JSON file; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _sst2 import ATTACKS, load_case, named, save

import asepsis
from asepsis.data import read
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.grid.table import spread
from asepsis.evaluation.harness import Case
from asepsis.evaluation.predict import measure

N_CLEAN = 96
VARIANTS: dict[str, dict[str, Any]] = {
    "robust": {"calibrate": False, "order": "train_then_edit"},
    "calibrated": {"order": "train_then_edit"},
    "l2 only": {"score": "l2", "order": "train_then_edit"},
    "edit first": {"calibrate": False},
    "edit first, pad": {"calibrate": False, "order": "edit_then_train", "replacement": "pad"},
    "reference": {"mode": "reference"},
    "reference, once": {"mode": "reference", "threshold_rule": "frobenius_over_rows_once"},
}
STAGES = ("before edit", "after edit", "after tuning")


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for variant in args.variants:
            for attack in args.attacks:
                cell = (
                    args.output / f"{variant.replace(', ', '-').replace(' ', '-')}-{attack}-seed{seed}.json"
                )
                if not cell.exists():
                    measure_cell(args, cell, variant, attack, seed)


def measure_cell(args: argparse.Namespace, cell: Path, variant: str, attack: str, seed: int) -> None:
    began = time.monotonic()
    case = (
        clean_case(args, seed)
        if attack == "clean"
        else load_case(args.data, attack, rows=args.rows, seed=seed)
    )
    dev = read(args.data / "dev_clean.jsonl")
    done = asepsis.defend(
        "demo:encoder",
        case.train,
        defense=asepsis.BtuConfig(**VARIANTS[variant]),
        clean_reference=dev.select(drawn(len(dev), N_CLEAN, 1000 + seed)),
        settings=asepsis.Settings(seed=seed, epochs=args.epochs, max_length=64),
        keep_stages=True,
    )
    rows = []
    for stage in done.stages:
        with done.stage(stage) as model:
            measured = measure(
                model, done.tokenizer, case.test, case.triggered, target_label=1, max_length=64
            )
        rows.append({"defense": variant, "attack": attack, "stage": stage, **measured.to_dict()})
    manifest = named(done.manifest, args.data)
    save(cell, {"seed": seed, "rows": rows, "run": manifest, "seconds": time.monotonic() - began})


def clean_case(args: argparse.Namespace, seed: int) -> Case:
    """As many rows as the other cells train on, none of them poisoned."""
    whole = load_case(args.data, "badnets", rows=10**9, seed=seed)
    clean = whole.train.select(np.flatnonzero(~whole.key.for_ids(whole.train.sample_ids)))
    return replace(whole, train=clean.select(drawn(len(clean), args.rows, seed)))


def render(args: argparse.Namespace) -> None:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    lost: dict[tuple[str, str], list[int]] = {}
    for path in sorted([*args.output.glob("*-seed*.json"), *args.controls.glob("*-seed*.json")]):
        cell = json.loads(path.read_text())
        for row in cell["rows"]:
            key = (row["defense"], row.get("stage", ""), row.get("attack", cell.get("attack")))
            found.setdefault(key, []).append(row)
        if "stage" in cell["rows"][0]:
            key2 = (cell["rows"][0]["defense"], cell["rows"][0]["attack"])
            lost.setdefault(key2, []).append(len(cell["run"]["report"]["tokens"]))
    attacks = (*ATTACKS, "clean")
    print(
        "| model | stage | " + " | ".join(f"{a}: CACC / ASR / tokens flagged (seeds)" for a in attacks) + " |"
    )
    print("|---" * (len(attacks) + 2) + "|")
    lines = [(name, "") for name in ("none", "clean-only")] + [(v, s) for v in VARIANTS for s in STAGES]
    for name, stage in lines:
        columns = []
        for attack in attacks:
            rows = found.get((name, stage, attack), [])
            pair = [
                spread([row[k]["value"] for row in rows]) for k in ("clean_accuracy", "attack_success_rate")
            ]
            edited = lost.get((name, attack), []) if stage == "after edit" else []
            parts = [*pair, *([f"{sum(edited) / len(edited):.0f}"] if edited else [])]
            columns.append(" / ".join(parts) + f" ({len(rows)})" if rows else "")
        if any(columns):
            print(f"| {name} | {stage} | " + " | ".join(columns) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--attacks", nargs="+", default=[*ATTACKS, "clean"])
    runs.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    runs.add_argument("--epochs", type=float, default=2.0)
    runs.add_argument("--rows", type=int, default=3000, help="training rows drawn by each seed")
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.add_argument("--output", type=Path, required=True)
    renders.add_argument("--controls", type=Path, required=True, help="cells of abl_sst2.py")
    renders.set_defaults(verb=render)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
