"""What PSIM's module should be, and when it should stop: each choice on rows that no table is measured on.

    python benches/psim_choices.py run --data FOLDER --output FILE.jsonl --victims VICTIMS [--only NAME ...]
    python benches/psim_choices.py render --output FILE.jsonl

FOLDER and VICTIMS as for ``psim_sst2.py``. The module learns from the dev rows as there, under other seeds than the table's,
and is judged on training rows that its victim was not tuned on, as they are and with the trigger. Test rows are not read.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from weights_sst2 import LENGTH, recipe

import asepsis
from asepsis.data import read
from asepsis.errors import AsepsisError
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.grid.table import spread
from asepsis.evaluation.metrics import auroc, tpr_at_fpr
from asepsis.inference.detectors import load

TUNED = 3000  # rows the victims of psim_sst2.py were tuned on
VICTIMS = ("badnets-0", "addsent-2", "lwp-0", "ep-0")
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "unsure=0.6": {"unsure": 0.6},
    "unsure=0.8": {"unsure": 0.8},
    "head=trained": {"head": "trained"},
    "P-tuning v1, head=trained (the authors')": {"kind": "p_tuning"},
    "P-tuning v1, head=trained, unsure=0.6": {"kind": "p_tuning", "unsure": 0.6},
    "P-tuning v1, head=frozen": {"kind": "p_tuning", "head": "frozen"},
    "prefix tuning, head=frozen": {"kind": "prefix_tuning", "head": "frozen"},
    # trained on to a step, with the default's twelve of warm-up
    "90 steps": {"stop": "never", "steps": 90, "warmup": 12 / 90},
    "P-tuning v1, head=trained, 15 steps": {
        "kind": "p_tuning",
        "stop": "never",
        "steps": 15,
        "warmup": 12 / 15,
    },
    "P-tuning v1, head=trained, 20 steps": {
        "kind": "p_tuning",
        "stop": "never",
        "steps": 20,
        "warmup": 12 / 20,
    },
    "P-tuning v1, head=trained, 40 steps": {
        "kind": "p_tuning",
        "stop": "never",
        "steps": 40,
        "warmup": 12 / 40,
    },
    "LoRA, labels drawn anew each epoch": {"labels": "uniform_per_epoch"},
    "200 clean rows, labels drawn anew": {"clean_rows": 200, "labels": "uniform_per_epoch"},
    "200 clean rows, labels drawn once": {"clean_rows": 200, "labels": "uniform_fixed"},
}


def run(args: argparse.Namespace) -> None:
    done = {key(json.loads(line)) for line in args.output.open()} if args.output.exists() else set()
    for name, victim, again in product(args.only, args.on, args.guards):
        row = {"choice": name, "victim": victim, "guard_seed": again}
        if key(row) in done:
            continue
        began = time.monotonic()
        row |= measured(args, victim, again, CHOICES[name])
        with args.output.open("a") as out:
            out.write(json.dumps({**row, "seconds": round(time.monotonic() - began, 1)}) + "\n")


def measured(args: argparse.Namespace, victim: str, again: int, fields: dict[str, Any]) -> dict[str, Any]:
    attack, seed = victim.rsplit("-", 1)
    train, dev = read(args.data / "sst2" / "train.jsonl"), read(args.data / "sst2" / "dev.jsonl")
    unseen = train.select(np.setdiff1d(np.arange(len(train)), drawn(len(train), TUNED, int(seed))))
    rows = unseen.select(drawn(len(unseen), args.rows, again))
    bad = recipe(attack).triggered(rows, seed=again)
    fields = dict(fields)
    dev = dev.select(drawn(len(dev), fields.pop("clean_rows", len(dev)), again))
    try:
        guard = asepsis.Guard.fit(
            str(args.victims / f"{attack}-seed{seed}"),
            dev,
            target_fpr=0.05,
            detector=load("psim").config_type.from_dict(fields),
            seed=again,
            max_length=LENGTH,
        )
    except AsepsisError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    sound, poisoned = guard.check(rows), guard.check(bad)
    both = np.r_[sound.suspicion, poisoned.suspicion]
    truth = np.repeat([False, True], [len(rows), len(bad)])
    report = guard.manifest["report"]
    return {
        "steps": report["steps"],
        "seen": report["watch"]["seen"],
        "auroc": auroc(both, truth),
        "tpr_at_1_fpr": tpr_at_fpr(both, truth, fpr=0.01),
        "clean": float(np.mean(sound.flagged)),
        "triggered": float(np.mean(poisoned.flagged)),
    }


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["choice"], row["victim"], row["guard_seed"]


def render(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in args.output.open()]
    print("| choice | victim | modules | failed | steps | AUROC | triggered flagged at 0.05 |")
    print("|---|---|---|---|---|---|---|")
    for name, victim in product(CHOICES, VICTIMS):
        found = [r for r in rows if (r["choice"], r["victim"]) == (name, victim)]
        fitted = [r for r in found if "error" not in r]
        if found:
            steps = ", ".join(str(r["steps"]) for r in fitted)
            numbers = " | ".join(spread([r[k] for r in fitted]) for k in ("auroc", "triggered"))
            print(f"| {name} | {victim} | {len(found)} | {len(found) - len(fitted)} | {steps} | {numbers} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--victims", type=Path, required=True)
    runs.add_argument("--only", nargs="+", default=list(CHOICES), choices=CHOICES)
    runs.add_argument("--on", nargs="+", default=list(VICTIMS), choices=VICTIMS)
    runs.add_argument("--guards", type=int, nargs="+", default=[10], help="seeds of the modules")
    runs.add_argument("--rows", type=int, default=200)
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
