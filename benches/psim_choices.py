"""When PSIM's module should stop: the quantile of clean confidence it waits for, on rows that no table is measured on.

    python benches/psim_choices.py run --data FOLDER --output FILE.jsonl --victims VICTIMS [--seeds 0 1 2]
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
from _sst2 import drawn, spread
from weights_sst2 import LENGTH, recipe

import asepsis
from asepsis.data import read
from asepsis.errors import AsepsisError
from asepsis.evaluation.metrics import auroc, tpr_at_fpr
from asepsis.inference.detectors import load

TUNED = 3000  # rows the victims of psim_sst2.py were tuned on
UNSURE = (0.6, 0.7, 0.8)


def run(args: argparse.Namespace) -> None:
    done = {key(json.loads(line)) for line in args.output.open()} if args.output.exists() else set()
    for seed, attack, again, unsure in product(args.seeds, args.attacks, args.guards, args.unsure):
        row = {"attack": attack, "seed": seed, "guard_seed": again, "unsure": unsure}
        if key(row) in done:
            continue
        began = time.monotonic()
        row |= measured(args, attack, seed, again, unsure)
        with args.output.open("a") as out:
            out.write(json.dumps({**row, "seconds": round(time.monotonic() - began, 1)}) + "\n")


def measured(args: argparse.Namespace, attack: str, seed: int, again: int, unsure: float) -> dict[str, Any]:
    train, dev = read(args.data / "sst2" / "train.jsonl"), read(args.data / "sst2" / "dev.jsonl")
    unseen = train.select(np.setdiff1d(np.arange(len(train)), drawn(len(train), TUNED, seed)))
    rows = unseen.select(drawn(len(unseen), args.rows, again))
    bad = recipe(attack).triggered(rows, seed=again)
    try:
        guard = asepsis.Guard.fit(
            str(args.victims / f"{attack}-seed{seed}"),
            dev,
            target_fpr=0.05,
            detector=load("psim").config_type.from_dict({"unsure": unsure}),
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
    return row["attack"], row["seed"], row["guard_seed"], row["unsure"]


def render(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in args.output.open()]
    print("| attack | `unsure` | modules | failed | steps | AUROC | lowest | triggered flagged at 0.05 |")
    print("|---|---|---|---|---|---|---|---|")
    for attack, unsure in product(
        dict.fromkeys(r["attack"] for r in rows), sorted({r["unsure"] for r in rows})
    ):
        found = [r for r in rows if (r["attack"], r["unsure"]) == (attack, unsure)]
        fitted = [r for r in found if "error" not in r]
        if fitted:
            steps = [r["steps"] for r in fitted]
            areas = [r["auroc"] for r in fitted]
            print(
                f"| {attack} | {unsure} | {len(found)} | {len(found) - len(fitted)} | {min(steps)} to {max(steps)} | "
                f"{spread(areas)} | {min(areas):.3f} | {spread([r['triggered'] for r in fitted])} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--victims", type=Path, required=True)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--guards", type=int, nargs="+", default=[10, 11], help="seeds of the modules")
    runs.add_argument("--attacks", nargs="+", default=["badnets", "addsent"])
    runs.add_argument("--unsure", type=float, nargs="+", default=list(UNSURE))
    runs.add_argument("--rows", type=int, default=300)
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
