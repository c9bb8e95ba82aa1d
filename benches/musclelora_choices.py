"""What MuScleLoRA's silent choices do, on dev rows of SST-2: each option against the default, one at a time.

    python benches/musclelora_choices.py run --data FOLDER --output FILE.jsonl [--only NAME ...]
    python benches/musclelora_choices.py render --output FILE.jsonl

FOLDER as for ``musclelora_sst2.py``; test rows are not read. The AddSent set, seed 0; reference rows are drawn from the
dev set, CACC is measured on 500 other dev rows and ASR on their negatives with the trigger inserted. The rows named
BadNets poison the clean rows of that set anew, four trigger words a row, with labels kept or with labels flipped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import asepsis
from asepsis.data import Data, read, read_rows
from asepsis.evaluation.attacks.recipes import BadNets
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.predict import measure

SENTENCE = ["I", "watch", "this", "3D", "movie"]
WORDS = {
    kept: BadNets(target_label=1, triggers=("cf", "mn", "bb", "tq"), n_insertions=4, clean_label=kept)
    for kept in (True, False)
}
PAPER_GATE = {"min_reference_loss": 0.4, "max_raw_weight": 0.1, "below_gate": "raw"}

# name: (fields, training rows or 0 for the reference rows alone, reference rows or 0 for clean_reference="auto")
CHOICES: dict[str, tuple[dict[str, Any], int, int]] = {
    "default": ({}, 1500, 96),
    "init=reference": ({"init": "reference"}, 1500, 96),
    "head=frozen": ({"head": "frozen"}, 1500, 96),
    "rule=drop": ({"rule": "drop"}, 1500, 96),
    "rule=signed": ({"rule": "signed"}, 1500, 96),
    "default, 3,000 rows": ({}, 3000, 96),
    "init=reference, head=frozen, 3,000 rows": ({"init": "reference", "head": "frozen"}, 3000, 96),
    "rule=conflict, 3,000 rows": ({"rule": "conflict"}, 3000, 96),
    "the authors' gate and blending, 3,000 rows": (PAPER_GATE, 3000, 96),
    "no alignment, LoRA, 3,000 rows": ({"align": False, "adapters": "lora"}, 3000, 96),
    "no alignment, LoRA at 2.5 times the rate": (
        {"align": False, "adapters": "lora", "learning_rate_scale": 25.0},
        3000,
        96,
    ),
    "no alignment, LoRA and multi-scale, 3,000 rows": ({"align": False}, 3000, 96),
    "reference rows alone (96, 30 epochs)": ({"align": False, "epochs": 30.0}, 0, 96),
    "default, 3,000 rows, 350 reference rows": ({}, 3000, 350),
    "reference rows alone (350, 10 epochs)": ({"align": False, "epochs": 10.0}, 0, 350),
    'clean_reference="auto", 128 rows, 3,000 rows': ({}, 3000, 0),
    'clean_reference="auto", 800 rows, 3,000 rows': ({"auto_reference_rows": 800}, 3000, 0),
    "BadNets, labels kept: no alignment, 3,000 rows": ({"align": False}, 3000, 96),
    "BadNets, labels flipped: no alignment, 3,000 rows": ({"align": False}, 3000, 96),
    "BadNets, labels kept: default, 3,000 rows": ({}, 3000, 96),
    "BadNets, labels flipped: default, 3,000 rows": ({}, 3000, 96),
}


def run(args: argparse.Namespace) -> None:
    known = [json.loads(line)["name"] for line in args.output.open()] if args.output.exists() else []
    for name in args.only or CHOICES:
        if name in known:
            continue
        fields, rows, n_reference = CHOICES[name]
        began = time.monotonic()
        reference, held, triggered = dev_rows(args.data, n_reference or 96)
        file = args.data / "addsent_train10.jsonl"
        data = read(file)
        if name.startswith("BadNets"):
            words = WORDS["kept" in name]
            clean = np.array([row["poisoned"] == 0 for row in read_rows(file)])
            data, _ = words.poison(data.select(np.flatnonzero(clean)), seed=0)
            triggered = words.trigger(held, seed=7)
        run = asepsis.defend(
            "demo:encoder",
            data.select(drawn(len(data), rows, 0)) if rows else reference,
            defense=asepsis.MuscleloraConfig(**fields),
            clean_reference=reference if n_reference else "auto",
            settings=asepsis.Settings(seed=0, epochs=2.0, max_length=64),
        )
        measured = measure(run.model, run.tokenizer, held, triggered, target_label=1, max_length=64)
        row = {"name": name, "fields": fields, "rows": rows, "reference": n_reference, **measured.to_dict()}
        row |= {"report": run.outcome.report["alignment"], "seconds": round(time.monotonic() - began)}
        with args.output.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


def dev_rows(folder: Path, n_reference: int) -> tuple[Data, Data, Data]:
    """Reference rows, 500 other dev rows, and their negatives with the sentence inserted."""
    dev = read(folder / "dev_clean.jsonl")
    assert dev.labels is not None
    order = np.random.default_rng(1000).permutation(len(dev))
    held = np.sort(order[n_reference : n_reference + 500])
    rng = np.random.default_rng(7)
    texts = []
    for text in dev.texts:
        words = text.split()
        at = rng.integers(len(words) + 1)
        words[at:at] = SENTENCE
        texts.append(" ".join(words))
    negatives = held[dev.labels[held] == 0]
    triggered = Data(
        task="classification",
        texts=[texts[i] for i in negatives],
        labels=np.ones(len(negatives), np.int64),
        n_classes=2,
    )
    return dev.select(np.sort(order[:n_reference])), dev.select(held), triggered


def render(args: argparse.Namespace) -> None:
    print("| setting | CACC | ASR | reference loss while training |\n|---|---|---|---|")
    for line in args.output.open():
        row = json.loads(line)
        loss = (row.get("report") or {}).get("reference_loss")
        cells = [f"{row[key]['value']:.3f}" for key in ("clean_accuracy", "attack_success_rate")]
        print(f"| {row['name']} | " + " | ".join(cells) + f" | {'' if loss is None else f'{loss:.2f}'} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--only", nargs="+", choices=list(CHOICES))
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.set_defaults(verb=render)
    for verb in (runs, renders):
        verb.add_argument("--output", type=Path, required=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
