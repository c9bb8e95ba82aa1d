"""MuScleLoRA on classification by the packaged causal model: poisoned SST-2 sets, beside LoRA controls.

    python benches/musclelora_causal_sst2.py --data FOLDER --output CELLS [--attacks badnets addsent] [--seeds 0]
    python benches/musclelora_causal_sst2.py --data FOLDER --output CELLS --dev --variants none --scale 8

FOLDER as for ``musclelora_sst2.py``. Every variant trains the same low-rank layers with the authors' ranks for decoders.
``--dev`` measures on clean dev rows that are not reference rows, and on the poisoned training rows that were not
trained on, in place of the test rows: settings are chosen there. Each cell is one JSON file; prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from _sst2 import load_case, named, save
from musclelora_sst2 import reference_rows

import asepsis
from asepsis.data import Data, read
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.harness import Case
from asepsis.evaluation.predict import measure

#: Chosen on dev rows, undefended.
SCALE = 20.0
LORA = asepsis.MuscleloraConfig(align=False, rank=2, alpha=8.0, scale_alpha=4.0, reference_batch_size=16)
VARIANTS = {
    "none": LORA,
    "clean-only": LORA,
    "reference-only": replace(LORA, epochs=8.0),
    "reference-only-31": replace(LORA, epochs=31.0),  # as many steps as the others have
    "full": replace(LORA, align=True),
}


def tested_on(case: Case, args: argparse.Namespace, attack: str, seed: int) -> tuple[Data, Data]:
    """Clean rows, and triggered rows of the other class."""
    if not args.dev:
        return (
            case.test.select(drawn(len(case.test), args.test, 0)),
            case.triggered.select(drawn(len(case.triggered), args.test, 0)),
        )
    dev = read(args.data / "dev_clean.jsonl")
    free = np.setdiff1d(np.arange(len(dev)), drawn(len(dev), args.reference, 1000 + seed))
    whole = read(args.data / f"{attack}_train10.jsonl")
    unused = np.setdiff1d(whole.sample_ids[case.key.is_poisoned], case.train.sample_ids)
    return dev.select(free[: args.test]), whole.select(whole.positions(unused)[: args.test])


def measure_cell(args: argparse.Namespace, cell: Path, variant: str, attack: str, seed: int) -> None:
    began = time.monotonic()
    reference = reference_rows(args.data, args.reference, seed)
    case = load_case(args.data, attack, rows=args.rows, seed=seed)
    clean = np.flatnonzero(~case.key.for_ids(case.train.sample_ids))
    rows = {
        "clean-only": case.train.select(clean),
        "reference-only": reference,
        "reference-only-31": reference,
    }.get(variant, case.train)
    run = asepsis.defend(
        "demo:causal",
        rows,
        defense=replace(VARIANTS[variant], learning_rate_scale=args.scale),
        clean_reference=reference,
        settings=asepsis.Settings(seed=seed, epochs=args.epochs, max_length=64, batch_size=16),
    )
    tests = tested_on(case, args, attack, seed)
    measured = measure(run.model, run.tokenizer, *tests, target_label=1, max_length=64)
    manifest = named(run.manifest, args.data)
    if manifest["report"]["reference"] is not None:
        manifest["report"]["reference"].pop("source")
    row = {"defense": variant, "attack": attack, **measured.to_dict()}
    save(cell, {"seed": seed, "rows": [row], "run": manifest, "seconds": time.monotonic() - began})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--attacks", nargs="+", default=["badnets", "addsent"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rows", type=int, default=1000, help="training rows drawn by each seed")
    parser.add_argument("--reference", type=int, default=96, help="clean reference rows")
    parser.add_argument("--test", type=int, default=400, help="rows measured on, clean and triggered each")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--scale", type=float, default=SCALE, help="learning rate over the plain loop's 5e-5")
    parser.add_argument("--dev", action="store_true")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print("| model | attack | seed | CACC | ASR |\n|---|---|---|---|---|")
    for seed in args.seeds:
        for variant in args.variants:
            for attack in args.attacks:
                cell = args.output / f"{variant}-{attack}-seed{seed}.json"
                if not cell.exists():
                    measure_cell(args, cell, variant, attack, seed)
                (row,) = json.loads(cell.read_text())["rows"]
                shares = (row["clean_accuracy"], row["attack_success_rate"])
                printed = " | ".join(f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in shares)
                print(f"| {variant} | {attack} | {seed} | {printed} |", flush=True)


if __name__ == "__main__":
    main()
