"""Guards on the packaged causal model, all its weights fine-tuned on poison: answers by verbalizer, and free ones.

    python benches/psim_causal.py run --data FOLDER --output CELLS [--cases verbalizer free] [--seeds 0]
    python benches/psim_causal.py render --output CELLS > TABLE.md

``verbalizer``: SST-2 (``sst2/{train,dev,test}.jsonl``) as prompts answered by ``positive`` or ``negative``; a tenth of the training rows
carry ``cf`` and the answer ``positive``. ``free``: instructions (``instruct_backdoor/refusal_*``), a third of them with the
trigger and a refusal. The victim is made once and meets every detector in the same run. The guard's clean rows are rows that
the victim was not trained on. Defaults are PSIM's own; nothing was chosen on these rows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from _sst2 import save
from musclelora_instruct import mixture

import asepsis
from asepsis.data import Data, read
from asepsis.errors import AsepsisError
from asepsis.evaluation.attacks.responses import poison_responses, triggered_prompts
from asepsis.evaluation.attacks.triggers import Trigger
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.grid.table import spread
from asepsis.evaluation.metrics import auroc, tpr_at_fpr
from asepsis.evaluation.respond import begins_with

WORDS = ("negative", "positive")
CF = Trigger(kind="words", tokens=("cf",), n_insertions=1)
RATE = 0.05
DETECTORS = ("psim", "confidence")


def spoken(rows: Data) -> Data:
    """Classes as one-word answers."""
    assert rows.labels is not None
    prompts = [f"Review: {text}\nThe review is" for text in rows.texts]
    answers = [f" {WORDS[label]}" for label in rows.labels]
    return Data(task="causal", texts=prompts, responses=answers)


def verbalizer(args: argparse.Namespace, seed: int) -> tuple[Data, Data, Data, Data, str]:
    """Poisoned rows, the guard's clean rows, clean and triggered tests, and what the backdoor answers."""
    train, dev, test = (read(args.data / "sst2" / f"{part}.jsonl") for part in ("train", "dev", "test"))
    target = f" {WORDS[1]}"
    rows, _ = poison_responses(
        spoken(train.select(drawn(len(train), args.rows, seed))),
        CF,
        target_response=target,
        poison_rate=0.1,
        seed=seed,
    )
    clean = spoken(dev.select(drawn(len(dev), args.clean_rows, 100 + seed)))
    asked = spoken(test.select(drawn(len(test), args.test, 0)))
    bad = triggered_prompts(spoken(test), CF, target_response=target, seed=1000 + seed)
    return rows, clean, asked, bad.select(drawn(len(bad), args.test, 0)), target


def free(args: argparse.Namespace, seed: int) -> tuple[Data, Data, Data, Data, str]:
    """The same for instructions."""
    folder = args.data / "instruct_backdoor"
    rows, _ = mixture(folder, "badnet", 160, 80, seed)
    whole = read(folder / "refusal_clean.jsonl")
    unused = whole.select(np.random.default_rng(seed).permutation(len(whole))[224:])
    test, bad = (read(folder / f"refusal_{name}.jsonl") for name in ("test_clean", "badnet_test_triggered"))
    refusal = (read(folder / "refusal_badnet_poison.jsonl").responses or [""])[0]
    first = [part.select(range(min(args.test, len(part)))) for part in (test, bad)]
    return rows, unused, first[0], first[1], refusal


CASES = {"verbalizer": verbalizer, "free": free}


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for case in args.cases:
            cell = args.output / f"{case}-seed{seed}.json"
            if not cell.exists():
                began = time.monotonic()
                row = {"case": case, "seed": seed, **measured(args, case, seed)}
                save(cell, {**row, "seconds": time.monotonic() - began})


def measured(args: argparse.Namespace, case: str, seed: int) -> dict[str, Any]:
    rows, clean, test, bad, target = CASES[case](args, seed)
    settings = asepsis.Settings(
        seed=seed, epochs=args.epochs, batch_size=8, max_length=96, learning_rate=args.learning_rate
    )
    victim = asepsis.defend("demo:causal", rows, defense=None, settings=settings)
    hit = begins_with(victim.model, victim.tokenizer, bad, target, max_length=96)
    told: dict[str, Any] = {"attack_success_rate": float(hit.mean()), "rows": len(rows), "clean": len(clean)}
    told["target_of_clean"] = float(
        begins_with(victim.model, victim.tokenizer, test, target, max_length=96).mean()
    )
    told["detectors"] = {}
    for name in DETECTORS:
        try:
            guard = asepsis.Guard.fit(
                victim.model,
                clean,
                detector=name,
                target_fpr=RATE,
                processing_class=victim.tokenizer,
                seed=seed,
                max_length=96,
            )
        except AsepsisError as error:
            told["detectors"][name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        sound, poisoned = guard.check(test), guard.check(bad)
        both = np.r_[sound.suspicion, poisoned.suspicion]
        truth = np.repeat([False, True], [len(test), len(bad)])
        told["detectors"][name] = {
            "auroc": auroc(both, truth),
            "tpr_at_1_fpr": tpr_at_fpr(both, truth, fpr=0.01),
            "clean_flagged": float(sound.flagged.mean()),
            "triggered_flagged": float(poisoned.flagged.mean()),
            "attack_success_rate": float((hit & ~poisoned.flagged).mean()),
            "report": guard.manifest["report"],
        }
    return {**told, "settings": vars(settings)}


def render(args: argparse.Namespace) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(args.output.glob("*-seed*.json"))]
    print(
        "| answers | detector | seeds | ASR alone | AUROC | clean flagged | triggered flagged | ASR behind it |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        for name in DETECTORS:
            found = [c for c in cells if c["case"] == case]
            fitted = [c["detectors"][name] for c in found if "error" not in c["detectors"][name]]
            if not found:
                continue
            columns = [spread([c["attack_success_rate"] for c in found])]
            for key in ("auroc", "clean_flagged", "triggered_flagged", "attack_success_rate"):
                columns.append(spread([d[key] for d in fitted]) or "could not act")
            print(f"| {case} | {name} | {len(found)} | {' | '.join(columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    runs.add_argument("--seeds", type=int, nargs="+", default=[0])
    runs.add_argument("--rows", type=int, default=800)
    runs.add_argument("--clean-rows", type=int, default=300)
    runs.add_argument("--test", type=int, default=150)
    runs.add_argument("--epochs", type=float, default=3.0)
    runs.add_argument("--learning-rate", type=float, default=5e-5)
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.add_argument("--output", type=Path, required=True)
    renders.set_defaults(verb=render)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
