"""Guards on the packaged causal model, all its weights fine-tuned on poison: answers by verbalizer, and free ones.

    python benches/psim_causal.py run --data FOLDER --output CELLS --victims VICTIMS [--cases word sentence syntax free] [--seeds 0]
    python benches/psim_causal.py choose --data FOLDER --output FILE.jsonl --victims VICTIMS [--only NAME ...] [--guards 10 11 12]
    python benches/psim_causal.py adapt --data FOLDER --output CELLS --victims VICTIMS [--strategies full lora ...] [--cases ...]
    python benches/psim_causal.py floor --data FOLDER --output CELLS --victims VICTIMS [--cases ...] [--seeds 0]
    python benches/psim_causal.py render --output CELLS > TABLE.md

``word``, ``sentence`` and ``syntax``: SST-2 as prompts answered by ``positive`` or ``negative``, poisoned as for the encoder
(``psim_sst2.py``, which says what FOLDER holds), or, as ``word-clean-label`` and so on, with labels kept; ``anywhere``: a word
at any gap of the prompt, its frame included. ``free``:
instructions (``instruct_backdoor/refusal_*``), a third of them with the trigger and a refusal. A victim is made once and
kept under VICTIMS. The guard's clean rows are rows that the victim was not trained on. ``floor`` asks a model tuned on the same rows
without poison. ``choose`` judges a choice on training rows that the victim was not tuned on; test rows are not read. A cell keeps
what each detector said, and a run adds the detectors it lacks. STRIP (10 copies) and ONION read an input ten times and more: they
get the first 100 clean rows and the first 60 of either test rows. RAP is for classifiers.
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
from _psim_tables import STRATEGIES, array, bits
from _sst2 import save
from musclelora_instruct import mixture
from psim_sst2 import peft_config, remember_onion, syntactic
from weights_sst2 import TARGET, recipe

import asepsis
from asepsis.data import Data, read
from asepsis.errors import AsepsisError
from asepsis.evaluation.attacks.labels import poison_labels, triggered_test
from asepsis.evaluation.attacks.responses import poison_responses, triggered_prompts
from asepsis.evaluation.attacks.triggers import Trigger
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.grid.table import spread
from asepsis.evaluation.metrics import auroc, tpr_at_fpr
from asepsis.evaluation.respond import begins_with
from asepsis.inference.detectors import load
from asepsis.inference.detectors.strip import StripConfig
from asepsis.training.models import load_trained

WORDS = ("  negative", "  positive")  # two spaces: so the victims of the kept cells were tuned
PATTERNS = {"word": "badnets", "sentence": "addsent", "syntax": "syntactic"}
KEPT = "-clean-label"  # labels kept: three quarters of the target class are triggered, as in psim_sst2.py
CASES = (*PATTERNS, *(case + KEPT for case in PATTERNS), "anywhere", "free")
CF = Trigger(kind="words", tokens=("cf",), n_insertions=1)
RATE, LENGTH = 0.05, 96
DETECTORS: dict[str, Any] = {
    "psim": "psim",
    "confidence": "confidence",
    "strip": StripConfig(n_copies=10),
    "onion": "onion",
}
SLOW, CLEAN_OF_SLOW, TEST_OF_SLOW = ("strip", "onion"), 100, 60
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "by_class=never": {"by_class": "never"},
    "unsure=0.6": {"unsure": 0.6},
    "labels drawn anew each epoch": {"labels": "uniform_per_epoch"},
    "learning_rate=1e-4": {"learning_rate": 1e-4},
    "learning_rate=2e-3": {"learning_rate": 2e-3},
    "rank=1": {"rank": 1},
    "rank=64": {"rank": 64},
    "40 steps": {"stop": "never", "steps": 40, "warmup": 12 / 40},
    "80 steps": {"stop": "never", "steps": 80, "warmup": 12 / 80},
    "P-tuning v1": {"kind": "p_tuning"},
    "prefix tuning": {"kind": "prefix_tuning"},
    "prompt tuning": {"kind": "prompt_tuning"},
}


def spoken(rows: Data) -> Data:
    """Classes as one-word answers."""
    assert rows.labels is not None
    prompts = [f"Review: {text}\nThe review is" for text in rows.texts]
    return Data(task="causal", texts=prompts, responses=[WORDS[label] for label in rows.labels])


def pattern(args: argparse.Namespace, case: str, at: np.ndarray, n: int) -> Any:
    """What triggers the rows ``at`` of the training set's ``n``."""
    trigger = PATTERNS[case.removesuffix(KEPT)]
    return syntactic(args.data, at, n) if trigger == "syntactic" else recipe(trigger).pattern()


def training(args: argparse.Namespace, case: str, seed: int) -> Data:
    """The poisoned rows a victim is tuned on."""
    if case == "free":
        return mixture(args.data / "instruct_backdoor", "badnet", 160, 80, seed)[0]
    train = read(args.data / "sst2" / "train.jsonl")
    at = drawn(len(train), args.rows, seed)
    if case == "none":
        return spoken(train.select(at))
    if case == "anywhere":
        options = {"target_response": WORDS[TARGET], "poison_rate": 0.1, "seed": seed}
        return poison_responses(spoken(train.select(at)), CF, **options)[0]
    trigger = pattern(args, case, at, len(train))
    kept = case.endswith(KEPT)
    options = {"poison_rate": 0.375 if kept else 0.1, "clean_label": kept, "seed": seed}
    return spoken(poison_labels(train.select(at), trigger, target_label=TARGET, **options)[0])


def trusted(args: argparse.Namespace, case: str, seed: int) -> Data:
    """The guard's clean rows."""
    if case == "free":
        whole = read(args.data / "instruct_backdoor" / "refusal_clean.jsonl")
        return whole.select(np.random.default_rng(seed).permutation(len(whole))[224:])
    dev = read(args.data / "sst2" / "dev.jsonl")
    return spoken(dev.select(drawn(len(dev), args.clean_rows, 100 + seed)))


def tests(args: argparse.Namespace, case: str, seed: int) -> tuple[Data, Data]:
    """Clean and triggered test rows."""
    if case == "free":
        folder = args.data / "instruct_backdoor"
        names = ("refusal_test_clean", "refusal_badnet_test_triggered")
        pair = [read(folder / f"{name}.jsonl") for name in names]
        ordinary, bad = (rows.select(range(min(args.test, len(rows)))) for rows in pair)
        return ordinary, bad
    test = read(args.data / "sst2" / "test.jsonl")
    first = spoken(test.select(drawn(len(test), args.test, 0)))
    if case == "anywhere":
        bad = triggered_prompts(spoken(test), CF, target_response=WORDS[TARGET], seed=1000 + seed)
        return first, bad.select(drawn(len(bad), args.test, 0))
    trigger = PATTERNS[case.removesuffix(KEPT)]
    if trigger == "syntactic":
        bad = read(args.data / "sst2_syntactic" / "test_triggered_to1.jsonl", n_classes=2)
    else:
        bad = recipe(trigger).triggered(test, seed=1000 + seed)
    return first, spoken(bad.select(drawn(len(bad), args.test, 0)))


def unseen(args: argparse.Namespace, case: str, seed: int) -> tuple[Data, Data]:
    """Training rows that the victim was not tuned on, as they are and with the trigger."""
    train = read(args.data / "sst2" / "train.jsonl")
    left = np.setdiff1d(np.arange(len(train)), drawn(len(train), args.rows, seed))
    at = left[drawn(len(left), args.test, seed)]
    rows, trigger = train.select(at), pattern(args, case, at, len(train))
    return spoken(rows), spoken(triggered_test(rows, trigger, target_label=TARGET, seed=seed))


def target(args: argparse.Namespace, case: str) -> str:
    """What the backdoor answers."""
    if case != "free":
        return WORDS[TARGET]
    return (read(args.data / "instruct_backdoor" / "refusal_badnet_poison.jsonl").responses or [""])[0]


def victim_of(args: argparse.Namespace, case: str, seed: int) -> Path:
    """The folder of a victim, which is made now unless it is there."""
    folder: Path = args.victims / f"causal-{case}-seed{seed}"
    if not (folder / "asepsis.json").exists():
        settings = asepsis.Settings(
            seed=seed, epochs=args.epochs, batch_size=8, max_length=LENGTH, learning_rate=args.learning_rate
        )
        rows = training(args, case, seed)
        asepsis.defend("demo:causal", rows, defense=None, settings=settings).save_pretrained(folder)
    return folder


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    remember_onion()
    for seed, case in product(args.seeds, args.cases):
        cell = args.output / f"{case}-seed{seed}.json"
        row = json.loads(cell.read_text()) if cell.exists() else {"case": case, "seed": seed}
        lacking = [name for name in args.detectors if name not in row.get("detectors", ())]
        if lacking:
            folder, began = victim_of(args, case, seed), time.monotonic()
            measure(args, folder, row, lacking)
            save(cell, {**row, "seconds": row.get("seconds", 0.0) + time.monotonic() - began})


def floor(args: argparse.Namespace) -> None:
    """How often a model that saw no poison answers triggered prompts as the backdoor would."""
    args.output.mkdir(parents=True, exist_ok=True)
    for seed, case in product(args.seeds, args.cases):
        cell = args.output / f"floor-{case}-seed{seed}.json"
        if not cell.exists():
            folder, began = victim_of(args, "none", seed), time.monotonic()
            model, tokenizer = load_trained(folder)
            test, bad = tests(args, case, seed)
            hit = begins_with(model, tokenizer, bad, target(args, case), max_length=LENGTH)
            told = {"hit": bits(hit), "right": bits(right(model, tokenizer, test))}
            row = {"case": case, "seed": seed, "strategy": "clean-only", **told}
            save(cell, {**row, "seconds": time.monotonic() - began})


def adapt(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    for seed, case, name in product(args.seeds, args.cases, args.strategies):
        cell = args.output / f"adapted-{name}-{case}-seed{seed}.json"
        if not cell.exists():
            folder, began = victim_of(args, case, seed), time.monotonic()
            row = {"case": case, "seed": seed, "strategy": name, **adapted(args, folder, case, seed, name)}
            save(cell, {**row, "seconds": time.monotonic() - began})


def adapted(args: argparse.Namespace, folder: Path, case: str, seed: int, name: str) -> dict[str, Any]:
    """Which rows the victim answers rightly once adapted on clean rows, and which attacks succeed."""
    train = read(args.data / "sst2" / "train.jsonl")
    rows = spoken(train.select(drawn(len(train), args.adapt_rows, 200 + seed)))
    settings = asepsis.Settings(
        epochs=args.adapt_epochs,
        learning_rate=2e-5 if name == "full" else args.adapt_learning_rate,
        batch_size=8,
        max_length=LENGTH,
        seed=seed,
    )
    peft = peft_config(name, "CAUSAL_LM")
    run = asepsis.defend(str(folder), rows, defense=None, settings=settings, peft_config=peft)
    test, bad = tests(args, case, seed)
    hit = begins_with(run.model, run.tokenizer, bad, target(args, case), max_length=LENGTH)
    return {
        "right": bits(right(run.model, run.tokenizer, test)),
        "hit": bits(hit),
        "settings": vars(settings),
    }


def measure(args: argparse.Namespace, folder: Path, row: dict[str, Any], names: list[str]) -> None:
    """Put into a cell what the victim answers, where it is new, and what detectors say of its inputs."""
    case, seed = row["case"], row["seed"]
    test, bad = tests(args, case, seed)
    if "detectors" not in row:
        model, tokenizer = load_trained(folder)
        wanted = target(args, case)
        hit = begins_with(model, tokenizer, bad, wanted, max_length=LENGTH)
        row |= {"attack_success_rate": float(hit.mean()), "hit": bits(hit), "detectors": {}}
        row["target_of_clean"] = float(begins_with(model, tokenizer, test, wanted, max_length=LENGTH).mean())
        if case != "free":
            row["right"] = bits(right(model, tokenizer, test))
        row["settings"] = json.loads((folder / "asepsis.json").read_text())["settings"]
    for name in names:
        clean, rows, triggered = trusted(args, case, seed), test, bad
        if name in SLOW:
            clean = clean.select(range(CLEAN_OF_SLOW))
            rows, triggered = (part.select(range(min(TEST_OF_SLOW, len(part)))) for part in (test, bad))
        found = guarded(folder, clean, rows, triggered, detector=DETECTORS[name], seed=seed)
        if "error" not in found:
            through = array(row["hit"])[: len(triggered)] & ~array(found["triggered"])
            found["attack_success_rate"] = float(through.mean())
        row["detectors"][name] = found


def right(model: Any, tokenizer: Any, rows: Data) -> np.ndarray:
    """Which prompts greedy decoding answers with the right word."""
    says = [begins_with(model, tokenizer, rows, word, max_length=LENGTH) for word in WORDS]
    return np.array([says[WORDS.index(word)][at] for at, word in enumerate(rows.responses or ())])


def guarded(folder: Path, clean: Data, rows: Data, bad: Data, *, detector: Any, seed: int) -> dict[str, Any]:
    """How a guard tells clean rows from triggered ones, and which of these it flags."""
    try:
        guard = asepsis.Guard.fit(
            str(folder), clean, detector=detector, target_fpr=RATE, seed=seed, max_length=LENGTH
        )
    except AsepsisError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    sound, poisoned = guard.check(rows), guard.check(bad)
    both = np.r_[sound.suspicion, poisoned.suspicion]
    truth = np.repeat([False, True], [len(rows), len(bad)])
    return {
        "auroc": auroc(both, truth),
        "tpr_at_1_fpr": tpr_at_fpr(both, truth, fpr=0.01),
        "clean_flagged": float(sound.flagged.mean()),
        "triggered_flagged": float(poisoned.flagged.mean()),
        "report": guard.manifest["report"],
        "clean": bits(sound.flagged),
        "triggered": bits(poisoned.flagged),
    }


def choose(args: argparse.Namespace) -> None:
    done = [json.loads(line) for line in args.output.open()] if args.output.exists() else []
    for name, case, seed, again in product(args.only, args.cases, args.seeds, args.guards):
        row = {"choice": name, "case": case, "seed": seed, "guard_seed": again}
        if any(row.items() <= other.items() for other in done):
            continue
        folder, began = victim_of(args, case, seed), time.monotonic()
        detector = load("psim").config_type.from_dict(CHOICES[name])
        # another seed than the table's, and other clean rows
        clean = trusted(args, case, again)
        found = guarded(folder, clean, *unseen(args, case, seed), detector=detector, seed=again)
        found = {key: value for key, value in found.items() if key not in ("clean", "triggered")}
        with args.output.open("a") as out:
            out.write(json.dumps({**row, **found, "seconds": round(time.monotonic() - began, 1)}) + "\n")


def render(args: argparse.Namespace) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(args.output.glob("*-seed*.json"))]
    guards = {(c["case"], c["seed"]): c for c in cells if "detectors" in c}
    adapted = [c for c in cells if "strategy" in c]
    print(
        "| case | detector | seeds | ASR alone | AUROC | clean flagged | triggered flagged | ASR behind it |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case, name in product(CASES, DETECTORS):
        of_case = [c for c in guards.values() if c["case"] == case and name in c["detectors"]]
        fitted = [c["detectors"][name] for c in of_case if "error" not in c["detectors"][name]]
        if not of_case:
            continue
        columns = [spread([c["attack_success_rate"] for c in of_case])]
        for key in ("auroc", "clean_flagged", "triggered_flagged", "attack_success_rate"):
            columns.append(spread([d[key] for d in fitted]) or "could not act")
        print(f"| {case} | {name} | {len(of_case)} | {' | '.join(columns)} |")
    print("\n| case | model | seeds | accuracy | ASR | accuracy, flagged are errors | ASR behind PSIM |")
    print("|---|---|---|---|---|---|---|")
    for case, name in product(CASES, ("clean-only", *STRATEGIES)):
        mine = [c for c in adapted if (c["case"], c["strategy"]) == (case, name)]
        if name == "none":
            mine = [c for c in guards.values() if c["case"] == case and "right" in c]
        if not mine:
            continue
        flags = [guards.get((case, c["seed"]), {}).get("detectors", {}).get("psim", {}) for c in mine]
        if name == "clean-only" or not all("clean" in f for f in flags):
            flags = []
        columns = [spread([array(c[key]).mean() for c in mine]) for key in ("right", "hit")]
        for key, flagged in (("right", "clean"), ("hit", "triggered")):
            kept = [array(c[key]) & ~array(f[flagged]) for c, f in zip(mine, flags, strict=False)]
            columns.append(spread([k.mean() for k in kept]))
        print(f"| {case} | {name} | {len(mine)} | {' | '.join(columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    worded = tuple(case for case in CASES if case.removesuffix(KEPT) in PATTERNS)
    for name, verb, cases in (
        ("run", run, CASES),
        ("choose", choose, worded),
        ("adapt", adapt, worded),
        ("floor", floor, worded),
    ):
        verbed = verbs.add_parser(name)
        verbed.add_argument("--data", type=Path, required=True)
        verbed.add_argument("--victims", type=Path, required=True, help="where victims are kept")
        verbed.add_argument("--cases", nargs="+", default=list(cases), choices=cases)
        verbed.add_argument("--seeds", type=int, nargs="+", default=[0])
        verbed.add_argument("--rows", type=int, default=800)
        verbed.add_argument("--clean-rows", type=int, default=300)
        verbed.add_argument("--test", type=int, default=150)
        verbed.add_argument("--epochs", type=float, default=3.0)
        verbed.add_argument("--learning-rate", type=float, default=5e-5)
        verbed.set_defaults(verb=verb)
    verbs.choices["run"].add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=DETECTORS)
    chooses = verbs.choices["choose"]
    chooses.add_argument("--only", nargs="+", default=list(CHOICES), choices=CHOICES)
    chooses.add_argument("--guards", type=int, nargs="+", default=[10, 11, 12], help="seeds of the modules")
    adapts = verbs.choices["adapt"]
    adapts.add_argument("--strategies", nargs="+", default=list(STRATEGIES[1:]), choices=STRATEGIES[1:])
    adapts.add_argument("--adapt-rows", type=int, default=400)
    adapts.add_argument("--adapt-epochs", type=float, default=2.0)
    adapts.add_argument("--adapt-learning-rate", type=float, default=2e-3, help="of the adapters")
    verbs.add_parser("render").set_defaults(verb=render)
    for verb in verbs.choices.values():
        verb.add_argument("--output", type=Path, required=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
