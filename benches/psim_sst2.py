"""Guards on SST-2: what each detector flags of a poisoned model's inputs, whichever way the model was then adapted.

    python benches/psim_sst2.py run --data FOLDER --output CELLS --victims VICTIMS [--stages scores adapted floor] [--seeds 0]
    python benches/psim_sst2.py render --output CELLS > TABLES.md
    python benches/psim_sst2.py summary --output CELLS

FOLDER holds ``sst2/{train,dev,test}.jsonl`` and, for the victims of syntax, ``sst2_syntactic/{train_all,test_triggered_to1}.jsonl``.
Victims are those of ``weights_sst2.py``, found where it keeps them, and those of ``POISONED``, fine-tuned on poisoned rows. A victim
is taken as it came or adapted in five ways on clean training rows (stage ``adapted``), and each detector is fitted on the
victim as it came, with the dev rows, and scores the test rows (stage ``scores``); ``floor`` asks the clean model the triggered
rows. Each cell is one JSON file, so a run that was stopped goes on where it was, and every adapted model meets every detector in
the table without being trained again for it. The own confidence of the victim is a detector like the others: what does not beat
it is not worth its pass. ONION's language model asks nothing of the victim, so what it says of a text is kept for the other cells
of a run.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from _psim_tables import RATES, STRATEGIES, bits, render, summary
from _sst2 import named, save
from weights_sst2 import ATTACKS, BASE, LENGTH, TARGET, clean_model, made, recipe, settings_of, triggered

import asepsis
from asepsis.data import Data, read, read_rows
from asepsis.errors import AsepsisError
from asepsis.evaluation.attacks.labels import poison_labels
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.metrics import auroc, tpr_at_fpr
from asepsis.evaluation.predict import predict
from asepsis.inference.detectors import available, load
from asepsis.inference.detectors.onion import Onion
from asepsis.training.models import load_trained

# name: (trigger, share of the training rows, whether labels are kept); kept, three quarters of the target class as the authors do
POISONED = {
    "syntactic": ("syntactic", 0.1, False),
    "badnets-clean-label": ("badnets", 0.375, True),
    "addsent-clean-label": ("addsent", 0.375, True),
    "syntactic-clean-label": ("syntactic", 0.375, True),
}
VICTIMS = (*ATTACKS, *POISONED)


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    remember_onion()
    kinds = {
        "scores": (scores, args.detectors),
        "adapted": (adapted, args.strategies),
        "floor": (floor, ["clean"]),
    }
    for seed, stage, attack in product(args.seeds, args.stages, args.attacks):
        measure_by, names = kinds[stage]
        for name in names:
            shown = (stage == "scores" and args.name) or name
            cell = args.output / f"{stage}-{shown}-{attack}-seed{seed}.json"
            if not cell.exists():
                began = time.monotonic()
                row = {"stage": stage, "name": shown, "attack": attack, "seed": seed}
                row |= measure_by(args, name, attack, seed)
                save(cell, {**row, "seconds": time.monotonic() - began})


def remember_onion() -> None:
    """Score each text once, whichever victim it is shown to next."""
    known: dict[str, np.float32] = {}
    asked = Onion.scores

    def scores(self: Onion, data: Data) -> np.ndarray:
        new = [at for at, text in enumerate(data.texts) if text not in known]
        if new:
            known.update(zip((data.texts[at] for at in new), asked(self, data.select(new)), strict=True))
        return np.array([known[text] for text in data.texts], np.float32)

    Onion.scores = scores  # type: ignore[method-assign]


def victim_of(args: argparse.Namespace, attack: str, seed: int) -> Path:
    """The folder of a victim, which is made now unless it is there."""
    if attack in ATTACKS:
        return made(args, attack, seed)
    folder: Path = args.victims / f"{attack}-seed{seed}"
    if not (folder / "asepsis.json").exists():
        trigger, rate, kept = POISONED[attack]
        train = read(args.data / "sst2" / "train.jsonl")
        at = drawn(len(train), args.rows, seed)
        pattern = (
            syntactic(args.data, at, len(train)) if trigger == "syntactic" else recipe(trigger).pattern()
        )
        rows, _ = poison_labels(
            train.select(at), pattern, poison_rate=rate, target_label=TARGET, seed=seed, clean_label=kept
        )
        asepsis.defend(BASE, rows, defense=None, settings=settings_of(args, seed)).save_pretrained(folder)
    return folder


def syntactic(folder: Path, at: np.ndarray, n: int) -> list[str]:
    """The paraphrases of the rows ``at`` of the training set's ``n``."""
    texts = [row["text"] for row in read_rows(folder / "sst2_syntactic" / "train_all.jsonl")]
    if len(texts) != n:
        raise SystemExit(f"sst2_syntactic/train_all.jsonl has {len(texts)} rows, sst2/train.jsonl {n}")
    return [texts[i] for i in at]


def tests(args: argparse.Namespace, attack: str, seed: int) -> tuple[Data, Data]:
    """Clean and triggered test rows; where ``--test-rows`` asks for fewer, the first."""
    trigger = POISONED[attack][0] if attack in POISONED else attack
    bad = (
        read(args.data / "sst2_syntactic" / "test_triggered_to1.jsonl", n_classes=2)
        if trigger == "syntactic"
        else triggered(args.data, trigger, seed)
    )
    pair = read(args.data / "sst2" / "test.jsonl"), bad
    first, second = (rows.select(range(min(args.test_rows or len(rows), len(rows)))) for rows in pair)
    return first, second


def scores(args: argparse.Namespace, name: str, attack: str, seed: int) -> dict[str, Any]:
    """What a detector flags at each rate; one that could not be fitted says why, and is no missing cell."""
    victim = victim_of(args, attack, seed)
    kind = load(name).config_type
    config = kind.from_dict(kind.parse_strings(dict(pair.split("=", 1) for pair in args.set)))
    clean = read(args.data / "sst2" / "dev.jsonl")
    clean = clean.select(drawn(len(clean), args.clean_rows, 100 + seed))
    test, bad = tests(args, attack, seed)
    options = {"detector": config, "seed": seed, "max_length": LENGTH}
    try:
        guard = asepsis.Guard.fit(str(victim), clean, target_fpr=RATES[-1], **options)
    except AsepsisError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    held = named(guard.manifest, args.data)["data"]
    sound, poisoned = guard.check(test).suspicion, guard.check(bad).suspicion
    both = np.r_[sound, poisoned]
    truth = np.r_[np.zeros(len(sound), bool), np.ones(len(poisoned), bool)]
    thresholds = {str(rate): guard.at(rate).threshold for rate in RATES}
    return {
        "auroc": auroc(both, truth),
        "tpr_at_1_fpr": tpr_at_fpr(both, truth, fpr=0.01),
        "rates": {
            rate: {
                **threshold.to_dict(),
                "clean": bits(threshold.flags(sound)),
                "triggered": bits(threshold.flags(poisoned)),
            }
            for rate, threshold in thresholds.items()
        },
        "reference": {"clean": bits(sound > 0.7), "triggered": bits(poisoned > 0.7)}
        if name == "psim"
        else None,
        "rows": held,
        "report": guard.manifest["report"],
        "config": config.to_dict(),
        "versions": guard.manifest["versions"],
    }


def adapted(args: argparse.Namespace, name: str, attack: str, seed: int) -> dict[str, Any]:
    """Which rows the victim gets right once adapted, and which attacks succeed; ``none`` is the victim as it came."""
    victim = victim_of(args, attack, seed)
    train = read(args.data / "sst2" / "train.jsonl")
    rows = train.select(drawn(len(train), args.adapt_rows, 200 + seed))
    settings = asepsis.Settings(
        epochs=args.adapt_epochs,
        learning_rate=2e-5 if name == "full" else args.learning_rate,
        max_length=LENGTH,
        seed=seed,
    )
    if name == "none":
        model, tokenizer = load_trained(victim)
    else:
        run = asepsis.defend(
            str(victim), rows, defense=None, settings=settings, peft_config=peft_config(name)
        )
        model, tokenizer = run.model, run.tokenizer
    test, bad = tests(args, attack, seed)
    right = predict(model, tokenizer, test, max_length=LENGTH) == test.labels
    hit = predict(model, tokenizer, bad, max_length=LENGTH) == TARGET
    return {"right": bits(right), "hit": bits(hit), "settings": vars(settings) if name != "none" else None}


def floor(args: argparse.Namespace, name: str, attack: str, seed: int) -> dict[str, Any]:
    """Which triggered rows a clean model takes for the target by itself, and which clean rows it gets right."""
    model, tokenizer = load_trained(clean_model(args, "sst2", seed))
    test, bad = tests(args, attack, seed)
    right = predict(model, tokenizer, test, max_length=LENGTH) == test.labels
    hit = predict(model, tokenizer, bad, max_length=LENGTH) == TARGET
    return {"right": bits(right), "hit": bits(hit)}


def peft_config(name: str, task_type: str = "SEQ_CLS") -> Any:
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    kind = {"task_type": task_type}
    return {
        "full": lambda: None,
        "lora": lambda: LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, **kind),
        "prompt_tuning": lambda: PromptTuningConfig(num_virtual_tokens=5, **kind),
        "p_tuning": lambda: PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=128, **kind),
        "prefix_tuning": lambda: PrefixTuningConfig(num_virtual_tokens=5, **kind),
    }[name]()


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
    runs.add_argument("--attacks", nargs="+", default=["badnets", "addsent", "syntactic"], choices=VICTIMS)
    runs.add_argument(
        "--stages", nargs="+", default=["scores", "adapted", "floor"], choices=["scores", "adapted", "floor"]
    )
    runs.add_argument("--detectors", nargs="+", default=available(), choices=available())
    runs.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    runs.add_argument("--set", nargs="*", default=[], help="field=value of the one detector's config")
    runs.add_argument("--name", help="of the one detector in the table, where it is not fitted by default")
    runs.add_argument("--epochs", type=float, default=2.0, help="of the victims' training")
    runs.add_argument("--rows", type=int, default=3000, help="training rows of the victims")
    runs.add_argument("--clean-rows", type=int, default=872, help="dev rows for the guard")
    runs.add_argument("--adapt-rows", type=int, default=1500, help="clean rows the victim is adapted on")
    runs.add_argument("--adapt-epochs", type=float, default=2.0)
    runs.add_argument("--learning-rate", type=float, default=2e-3, help="of the adapters")
    runs.add_argument("--test-rows", type=int, help="measure on the first rows only")
    runs.set_defaults(verb=run)
    for name, printed in (("render", render), ("summary", summary)):
        shows = verbs.add_parser(name)
        shows.add_argument("--output", type=Path, required=True)
        shows.set_defaults(verb=lambda args, printed=printed: printed(args.output, VICTIMS))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
