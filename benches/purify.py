"""Repair a backdoored classifier with E-PUR and Fine-mixing, beside the controls, on the packaged model and text.

    python benches/purify.py [--attack badnets] [--rows 2000] [--clean 128] [--test 600] [--masks 1] [--epochs 10]
        [--learning-rate 2e-5] [--seed 0] [--lines finemixing ...] [--output FILE.json]

The victim is ``demo:encoder`` tuned on rows of which a tenth carry the trigger; the base is ``demo:encoder``. Every line
is clean accuracy and attack success on rows nobody trained on: the victim; the victim fine-tuned on the clean rows
(reserve ratio 1); the base fine-tuned on the same rows under the victim's head (reserve ratio 0); E-PUR; Fine-mixing;
both. The clean rows are those of the packaged text that neither training nor test has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from asepsis import EpurConfig, FinemixingConfig, Settings, defend, purify
from asepsis.data import demo_rows
from asepsis.errors import AccuracyLost
from asepsis.evaluation.attacks import ADDSENT, BADNETS, poison_labels, triggered_test
from asepsis.evaluation.predict import measure
from asepsis.training.models import load_trained

LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attack", choices=("badnets", "addsent"), default="badnets")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--clean", type=int, default=128)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--masks", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", nargs="+", help="only these, beside the victim")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    trigger = {"badnets": BADNETS, "addsent": ADDSENT}[args.attack]
    train, rest = demo_rows(args.rows, args.clean + args.test, seed=args.seed)
    clean, test = rest.select(range(args.clean)), rest.select(range(args.clean, len(rest)))
    poisoned, _ = poison_labels(train, trigger, poison_rate=0.1, target_label=1, seed=args.seed)
    triggered = triggered_test(test, trigger, target_label=1, seed=args.seed)
    lines: list[dict[str, Any]] = []
    print("$ python " + " ".join(sys.argv))
    print("| model | clean accuracy | attack success | note | seconds |\n|---|---|---|---|---|", flush=True)

    def told(name: str, model: Any, tokenizer: Any, note: str, began: float) -> None:
        seconds = time.monotonic() - began
        found = measure(model, tokenizer, test, triggered, target_label=1, max_length=LENGTH).to_dict()
        lines.append({"model": name, "note": note, "seconds": seconds, **found})
        rates = [found[key]["value"] for key in ("clean_accuracy", "attack_success_rate")]
        print(f"| {name} | {rates[0]:.3f} | {rates[1]:.3f} | {note} | {seconds:.0f} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        settings = Settings(seed=args.seed, max_length=LENGTH)
        run = defend("demo:encoder", poisoned, defense=None, settings=settings)
        victim = run.save_pretrained(Path(folder) / "victim")
        told("victim", *load_trained(victim), "", began)
        mix = {"mask_seeds": tuple(range(args.masks)), "epochs": args.epochs}
        loose: dict[str, Any] = {**mix, "accuracy_drop": None}
        todo: dict[str, list[Any]] = {
            "fine-tuned": [FinemixingConfig(reserve_ratio=1.0, **loose)],
            "base, fine-tuned": [FinemixingConfig(reserve_ratio=0.0, **loose)],
            "epur": [EpurConfig()],
            "mixed at 0.5": [FinemixingConfig(reserve_ratio=0.5, **loose)],
            "finemixing": [FinemixingConfig(**mix)],
            "epur, finemixing": [EpurConfig(), FinemixingConfig(**mix)],
        }
        tuning = Settings(seed=args.seed, max_length=LENGTH, batch_size=8, learning_rate=args.learning_rate)
        for name, defense in todo.items():
            if args.lines and name not in args.lines:
                continue
            began = time.monotonic()
            try:
                found = purify(victim, base="demo:encoder", defense=defense, clean=clean, settings=tuning)
            except AccuracyLost as error:
                lines.append({"model": name, "reached": error.reached})
                print(f"| {name} | - | - | {error} | {time.monotonic() - began:.0f} |", flush=True)
                continue
            report = found.outcomes.get("finemixing")
            note = "" if report is None else f"ratio {report.report['reserve_ratio']:g}"
            if (reset := found.outcomes.get("epur")) is not None:
                tokens = [token["token"] for token in reset.report["reset"]]
                at = tokens.index("cf") + 1 if "cf" in tokens else None
                note += f" {len(tokens)} tokens reset, cf at {at}"
            told(name, *found.loaded, note.strip(), began)
            lines[-1]["report"] = {k: o.report for k, o in found.outcomes.items()}
    if args.output:
        content = {"settings": sys.argv[1:], "torch": torch.__version__, "lines": lines}
        args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
