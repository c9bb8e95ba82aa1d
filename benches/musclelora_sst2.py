"""MuScleLoRA and its ablation on the four poisoned SST-2 sets released with the paper, beside its controls.

    python benches/musclelora_sst2.py run --data FOLDER --output CELLS [--variants full lora] [--seeds 0 1 2]
    python benches/musclelora_sst2.py render --output CELLS --controls ABL_CELLS > TABLE.md

FOLDER as for ``abl_sst2.py``, with ``dev_clean.jsonl`` beside: reference rows are drawn from it by the seed, settings
were chosen on what is left of it. The undefended and the clean-only model are those of ``abl_sst2.py`` (same rows, same
settings, all weights trained). Each cell (variant, attack, seed) is one JSON file; a run that was stopped goes on.
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
from asepsis.data import Data, read
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.grid.table import spread
from asepsis.evaluation.predict import measure

# name: (fields of the config, reference rows, train on the reference rows alone)
VARIANTS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "reference-only": ({"align": False, "epochs": 30.0}, 96, True),
    "lora": ({"align": False, "adapters": "lora"}, 96, False),
    "multiscale": ({"align": False}, 96, False),
    "alignment": ({"adapters": "none", "learning_rate_scale": 1.0}, 96, False),
    "full": ({}, 96, False),
    "reference-only-800": ({"align": False, "epochs": 8.0}, 800, True),
    "full-800": ({}, 800, False),
}


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for variant in args.variants:
            alone = VARIANTS[variant][2]
            for attacks in [args.attacks] if alone else [[a] for a in args.attacks]:
                cell = args.output / f"{variant}-{'all' if alone else attacks[0]}-seed{seed}.json"
                if not cell.exists():
                    measure_cell(args, cell, variant, attacks, seed)


def measure_cell(args: argparse.Namespace, cell: Path, variant: str, attacks: list[str], seed: int) -> None:
    fields, n_reference, alone = VARIANTS[variant]
    began = time.monotonic()
    reference = reference_rows(args.data, n_reference, seed)
    case = load_case(args.data, attacks[0], rows=args.rows, seed=seed)
    settings = asepsis.Settings(seed=seed, epochs=args.epochs, max_length=64)
    run = asepsis.defend(
        "demo:encoder",
        reference if alone else case.train,
        defense=asepsis.MuscleloraConfig(**fields),
        clean_reference=reference,
        settings=settings,
    )
    rows = []
    for attack in attacks:
        triggered = read(args.data / f"{attack}_test_triggered_to1.jsonl", n_classes=2)
        measured = measure(run.model, run.tokenizer, case.test, triggered, target_label=1, max_length=64)
        rows.append({"defense": variant, "attack": attack, **measured.to_dict()})
    manifest = named(run.manifest, args.data)
    if manifest["report"]["reference"] is not None:
        manifest["report"]["reference"].pop("source")
    save(cell, {"seed": seed, "rows": rows, "run": manifest, "seconds": time.monotonic() - began})


def reference_rows(folder: Path, n: int, seed: int) -> Data:
    dev = read(folder / "dev_clean.jsonl")
    return dev.select(drawn(len(dev), n, 1000 + seed))


def render(args: argparse.Namespace) -> None:
    paths = [*args.output.glob("*-seed*.json"), *args.controls.glob("*-seed*.json")]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(paths):
        cell = json.loads(path.read_text())
        for row in cell["rows"]:
            found.setdefault((row["defense"], row.get("attack", cell.get("attack"))), []).append(row)
    print(
        "| model | " + " | ".join(f"{a}: CACC / ASR (seeds)" for a in ATTACKS) + " | mean CACC | mean ASR |"
    )
    print("|---" * (len(ATTACKS) + 3) + "|")
    for name in ("none", "clean-only", *VARIANTS):
        columns, means = [], []
        for attack in ATTACKS:
            rows = found.get((name, attack), [])
            pair = [[row[key]["value"] for row in rows] for key in ("clean_accuracy", "attack_success_rate")]
            columns.append(" / ".join(spread(values) for values in pair) + f" ({len(rows)})" if rows else "")
            if rows:
                means.append([sum(values) / len(values) for values in pair])
        whole = len(means) == len(ATTACKS)
        averages = [f"{sum(m[i] for m in means) / len(means):.3f}" if whole else "" for i in (0, 1)]
        print(f"| {name} | " + " | ".join([*columns, *averages]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--attacks", nargs="+", default=list(ATTACKS))
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
