"""ABL on the four poisoned SST-2 sets released with the MuScleLoRA paper, beside its controls.

    python benches/abl_sst2.py run --data FOLDER --clean FILE --output CELLS [--seeds 0 1 2]
    python benches/abl_sst2.py render --output CELLS > docs/results/abl_sst2.md

FOLDER holds ``ATTACK_train10.jsonl`` (with the answer key in ``poisoned``), ``ATTACK_test_triggered_to1.jsonl`` and
``test_clean.jsonl``; FILE holds the clean training rows. Each cell (attack, seed, defense) is one JSON file, so a run that was stopped goes on where it
was. Settings are those chosen on other data (Rotten Tomatoes) and on the SST-2 dev rows; test rows are read for the
final measurement only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from _sst2 import ATTACKS, load_case, named, save

import asepsis
from asepsis.data import read
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.grid.table import spread
from asepsis.evaluation.harness import run_case
from asepsis.evaluation.predict import measure

DEFENSES = ("none", "clean-only", "abl")


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {"epochs": args.epochs, "max_length": 64}
    # The demo's settings; nothing was tuned on SST-2.
    for seed in args.seeds:
        run_floor(args, seed, settings)
        for attack in args.attacks:
            cell = args.output / f"{attack}-seed{seed}.json"
            if cell.exists():
                continue
            began = time.monotonic()
            case = load_case(args.data, attack, rows=args.rows, seed=seed)
            chosen = asepsis.Settings(seed=seed, **settings)
            rows = run_case(case, ["abl"], model="demo:encoder", settings=chosen, floor=False)
            save(
                cell,
                {
                    "attack": attack,
                    "seed": seed,
                    "settings": settings,
                    "rows": [row.to_dict() for row in rows],
                    "abl": named(rows[-1].run.manifest, args.data),
                    "seconds": time.monotonic() - began,
                },
            )


def run_floor(args: argparse.Namespace, seed: int, settings: dict[str, Any]) -> None:
    """Train on the original clean SST-2 rows once a seed and measure it on every attack's triggered rows."""
    cell = args.output / f"clean-only-seed{seed}.json"
    if cell.exists():
        return
    began = time.monotonic()
    chosen = asepsis.Settings(seed=seed, **settings)
    data = read(args.clean)
    train = data.select(drawn(len(data), args.rows, seed))
    run = asepsis.defend("demo:encoder", train, defense=None, settings=chosen)
    clean = read(args.data / "test_clean.jsonl")
    rows = []
    for attack in ATTACKS:
        triggered = read(args.data / f"{attack}_test_triggered_to1.jsonl", n_classes=2)
        measured = measure(run.model, run.tokenizer, clean, triggered, target_label=1, max_length=64)
        rows.append({"defense": "clean-only", "attack": attack, **measured.to_dict()})
    save(cell, {"seed": seed, "settings": settings, "rows": rows, "seconds": time.monotonic() - began})


def render(args: argparse.Namespace) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(args.output.glob("*-seed*.json"))]
    print(
        "| attack | model | seeds | CACC | ASR | AUROC | TPR at 1 % FPR | precision of the 1 % | dropped: precision / recall |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for attack in ATTACKS:
        for defense in DEFENSES:
            rows = [
                row
                for cell in cells
                for row in cell["rows"]
                if row["defense"] == defense and row.get("attack", cell.get("attack")) == attack
            ]
            if not rows:
                continue
            columns = [
                spread([row[name]["value"] for row in rows])
                for name in ("clean_accuracy", "attack_success_rate")
            ]
            for name in ("auroc", "tpr_at_1_fpr", "precision_at_1_percent"):
                columns.append(spread([row[name] for row in rows if row.get(name) is not None]))
            found = [row for row in rows if row.get("flagged")]
            share = f"({len(found)} of {len(rows)} seeds) " if defense == "abl" else ""
            pair = [spread([row[name] for row in found]) for name in ("flagged_precision", "flagged_recall")]
            columns.append(share + " / ".join(pair) if found else share + "nothing dropped" if share else "")
            print(f"| {attack} | {defense} | {len(rows)} | " + " | ".join(columns) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--clean", type=Path, required=True, help="the clean SST-2 training rows")
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    runs.add_argument("--epochs", type=float, default=2.0)
    runs.add_argument("--rows", type=int, default=3000, help="training rows drawn by each seed")
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.add_argument("--output", type=Path, required=True)
    renders.set_defaults(verb=render)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
