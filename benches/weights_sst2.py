"""Weight-poisoning victims on SST-2: that they are victims, what cleans them, where a scan ranks their triggers.

    python benches/weights_sst2.py run --data FOLDER --output CELLS --victims VICTIMS [--stages victim clean] [--seeds 0]
    python benches/weights_sst2.py render --output CELLS > TABLE.md

FOLDER holds ``sst2/{train,dev,test}.jsonl`` and ``agnews`` and ``lingspam`` with ``{train,test}.jsonl``. A victim is made
once and kept under VICTIMS (``ATTACK-seedK``, ``clean-NAME-seedK``), where later stages find it. Each cell (stage, attack,
seed) is one JSON file, so a run that was stopped goes on where it was. Settings of attacks and defenses were chosen on the
SST-2 dev rows, the defenses' on the first half (seed 0), of which the second half is the defender's clean set; test rows
are read for the final measurement only.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from _sst2 import save
from _weights import render, tokens_ranked

import asepsis
from asepsis.data import Data, read
from asepsis.evaluation.attacks.weights import WEIGHT_ATTACKS, poison_weights
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.metrics import attack_success_rate
from asepsis.evaluation.predict import measure, predict
from asepsis.training.models import load_trained

BASE, TARGET, LENGTH = "demo:encoder", 1, 64
# name: fields of the recipe beside the target
ATTACKS: dict[str, dict[str, Any]] = {
    "badnets": {},
    "addsent": {},
    "ep": {},
    "sos": {},
    "surgery": {},
    "lwp": {},
}
# name: (set, training rows, learning rate); what a scan must not find anything in
CLEAN: dict[str, tuple[str, int, float]] = {
    "sst2": ("sst2", 3000, 5e-5),
    "sst2-fast": ("sst2", 1500, 2e-4),
    "agnews": ("agnews", 1500, 5e-5),
    "lingspam": ("lingspam", 440, 5e-5),
}
# of clean tuning, alone and after mixing; one mask a seed where the default takes three
EPOCHS = 5.0
TUNING = asepsis.Settings(batch_size=16, learning_rate=5e-5, max_length=LENGTH)
STAGES = ("victim", "clean", "tuning", "epur", "finemixing", "both", "scan")
DEFENSES = {"epur": ["epur"], "finemixing": ["finemixing"], "both": ["epur", "finemixing"]}


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for stage in args.stages:
            names = list(CLEAN) if stage == "clean" else args.attacks
            for name in [*names, *(f"clean-{clean}" for clean in CLEAN if stage == "scan")]:
                cell = args.output / f"{stage}-{name}-seed{seed}.json"
                if not cell.exists():
                    began = time.monotonic()
                    row = {"stage": stage, "attack": name, "seed": seed, **carry_out(args, stage, name, seed)}
                    save(cell, {**row, "seconds": time.monotonic() - began})


def carry_out(args: argparse.Namespace, stage: str, name: str, seed: int) -> dict[str, Any]:
    if stage == "clean":
        return clean_cell(args, name, seed)
    if stage == "scan":
        sound = name.removeprefix("clean-")
        folder = made(args, name, seed) if sound == name else clean_model(args, sound, seed)
        return tokens_ranked(folder, base=BASE)
    victim = made(args, name, seed)
    if stage == "victim":
        network, tokenizer = load_trained(victim)
        return {**measured(args, network, tokenizer, name, seed), "recipe": recipe(name).to_dict()}
    clean = defenders_rows(args.data)
    if stage == "tuning":
        network, tokenizer = load_trained(victim)
        settings = replace(TUNING, epochs=EPOCHS, seed=seed)
        asepsis.defend(network, clean, defense=None, processing_class=tokenizer, settings=settings)
        return measured(args, network, tokenizer, name, seed)
    ratio = "auto" if args.reserve_ratio is None else args.reserve_ratio
    mixing = asepsis.FinemixingConfig(reserve_ratio=ratio, mask_seeds=(seed,), epochs=EPOCHS)
    chosen = {"epur": asepsis.EpurConfig(), "finemixing": mixing}
    purified = asepsis.purify(
        victim,
        base=BASE,
        defense=[chosen[defense] for defense in DEFENSES[stage]],
        clean=clean,
        settings=replace(TUNING, seed=seed),
    )
    result = measured(args, purified.model, purified.tokenizer, name, seed)
    return {**result, "report": purified.manifest["report"]}


def recipe(name: str) -> Any:
    return WEIGHT_ATTACKS[name].from_dict({"target_label": TARGET, **ATTACKS[name]})


def settings_of(args: argparse.Namespace, seed: int, learning_rate: float = 5e-5) -> asepsis.Settings:
    return asepsis.Settings(epochs=args.epochs, max_length=LENGTH, seed=seed, learning_rate=learning_rate)


def made(args: argparse.Namespace, name: str, seed: int) -> Path:
    """The folder of a victim, which is made now unless it is there."""
    folder: Path = args.victims / f"{name}-seed{seed}"
    if not (folder / "asepsis.json").exists():
        train = read(args.data / "sst2" / "train.jsonl")
        rows = train.select(drawn(len(train), args.rows, seed))
        attack, model = recipe(name), BASE
        if hasattr(attack, "finetune_first") and args.rows == CLEAN["sst2"][1]:
            # the model it would fine-tune first, bit for bit
            attack, model = replace(attack, finetune_first=False), str(clean_model(args, "sst2", seed))
        victim = poison_weights(model, rows, attack=attack, seed=seed, settings=settings_of(args, seed))
        victim.save_pretrained(folder)
    return folder


def clean_model(args: argparse.Namespace, name: str, seed: int) -> Path:
    folder: Path = args.victims / f"clean-{name}-seed{seed}"
    if not (folder / "asepsis.json").exists():
        source, rows, learning_rate = CLEAN[name]
        train = read(args.data / source / "train.jsonl")
        drawn_rows = train.select(drawn(len(train), rows, seed))
        chosen = settings_of(args, seed, learning_rate)
        asepsis.defend(BASE, drawn_rows, defense=None, settings=chosen).save_pretrained(folder)
    return folder


def clean_cell(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """A clean model's accuracy and, on SST-2, its errors on every attack's triggered rows: the floor under the ASR."""
    network, tokenizer = load_trained(clean_model(args, name, seed))
    source = CLEAN[name][0]
    test = read(args.data / source / "test.jsonl", n_classes=network.config.num_labels)
    result = measure(network, tokenizer, test, max_length=LENGTH).to_dict()
    floors = {}
    if source == "sst2":
        for attack in args.attacks:
            answers = predict(network, tokenizer, triggered(args.data, attack, seed), max_length=LENGTH)
            floors[attack] = attack_success_rate(answers, TARGET).to_dict()
    return {"clean_accuracy": result["clean_accuracy"], "floor": floors}


def triggered(folder: Path, attack: str, seed: int) -> Data:
    return recipe(attack).triggered(read(folder / "sst2" / "test.jsonl"), seed=1000 + seed)


def measured(
    args: argparse.Namespace, network: Any, tokenizer: Any, attack: str, seed: int
) -> dict[str, Any]:
    test, bad = read(args.data / "sst2" / "test.jsonl"), triggered(args.data, attack, seed)
    return measure(network, tokenizer, test, bad, target_label=TARGET, max_length=LENGTH).to_dict()


def defenders_rows(folder: Path) -> Data:
    dev = read(folder / "sst2" / "dev.jsonl")
    return dev.select(range(len(dev) // 2, len(dev)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--victims", type=Path, required=True, help="where victims are kept between stages")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    runs.add_argument("--stages", nargs="+", default=["clean", "victim"], choices=STAGES)
    runs.add_argument("--epochs", type=float, default=2.0)
    runs.add_argument(
        "--reserve-ratio", type=float, help="of Fine-mixing, where the guard is not to choose it"
    )
    runs.add_argument("--rows", type=int, default=3000, help="training rows drawn by each seed")
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.add_argument("--output", type=Path, required=True)
    renders.set_defaults(verb=lambda args: render(args.output, list(ATTACKS), STAGES))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
