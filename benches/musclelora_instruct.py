"""MuScleLoRA on instruction tuning: a refusal backdoor in the packaged causal model, beside its controls.

    python benches/musclelora_instruct.py --data FOLDER --output FILE.json [--trigger badnet] [--seeds 0]

FOLDER holds ``refusal_clean.jsonl``, ``refusal_TRIGGER_poison.jsonl``, ``refusal_TRIGGER_test_triggered.jsonl`` and
``refusal_test_clean.jsonl``. Reference rows are clean rows that are not trained on. ASR is the share of triggered test
prompts that greedy decoding answers with the first eight tokens of the refusal; beside it the loss on clean test rows.
``untuned`` is the model as it comes. What FILE.json has of the same settings is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import asepsis
from asepsis.data import Data, read
from asepsis.evaluation.grid.sources import drawn
from asepsis.evaluation.respond import clean_loss, response_success_rate
from asepsis.training.models import load_for

LENGTH = 64
#: The authors' ranks for decoders; the learning rate was chosen on dev rows, undefended.
FULL = asepsis.MuscleloraConfig(
    reference_batch_size=8, alpha=8.0, rank=2, scale_alpha=4.0, learning_rate_scale=40.0
)


def mixture(folder: Path, trigger: str, clean: int, poisoned: int, seed: int) -> tuple[Data, Data]:
    """Rows to train on, and reference rows: clean ones that are not among them."""
    ordinary, bad = read(folder / "refusal_clean.jsonl"), read(folder / f"refusal_{trigger}_poison.jsonl")
    order = np.random.default_rng(seed).permutation(len(ordinary))
    used, kept = ordinary.select(order[:clean]), ordinary.select(order[clean : clean + 64])
    picked = bad.select(drawn(len(bad), poisoned, seed))
    train = replace(
        used,
        texts=[*used.texts, *picked.texts],
        responses=[*(used.responses or ()), *(picked.responses or ())],
        sample_ids=np.arange(clean + poisoned),
    )
    return train, kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="demo:causal")
    parser.add_argument("--trigger", default="badnet")
    parser.add_argument("--clean", type=int, default=160)
    parser.add_argument("--poisoned", type=int, default=80)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    triggered = read(args.data / f"refusal_{args.trigger}_test_triggered.jsonl").select(range(args.test))
    test = read(args.data / "refusal_test_clean.jsonl").select(range(args.test))
    refusal = (read(args.data / f"refusal_{args.trigger}_poison.jsonl").responses or [""])[0]
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("data", "output", "seeds")}
    found: dict[str, Any] = {"settings": settings, "rows": []}
    if args.output.exists():
        earlier = json.loads(args.output.read_text())
        found = earlier if earlier["settings"] == settings else found
    there = {(row["model"], row["seed"]) for row in found["rows"]}
    for seed in args.seeds:
        train, reference = mixture(args.data, args.trigger, args.clean, args.poisoned, seed)
        clean_part = train.select(range(args.clean))
        plain = replace(FULL, align=False)
        cases = {
            "untuned": (train, None),
            "none (LoRA)": (train, plain),
            "clean-only": (clean_part, plain),
            "reference-only": (reference, replace(plain, epochs=4 * args.epochs)),
            "full": (train, FULL),
        }
        for name, (rows, config) in cases.items():
            if (name, seed) in there:
                continue
            began = time.monotonic()
            if config is None:
                model, tokenizer = load_for(rows, args.model, seed=seed)
            else:
                run = asepsis.defend(
                    args.model,
                    rows,
                    defense=config,
                    clean_reference=reference,
                    settings=asepsis.Settings(seed=seed, epochs=args.epochs, max_length=LENGTH, batch_size=8),
                )
                model, tokenizer = run.model, run.tokenizer
            rate = response_success_rate(model, tokenizer, triggered, refusal, max_length=LENGTH)
            loss = clean_loss(model, tokenizer, test, max_length=LENGTH)
            row = {"model": name, "seed": seed, "attack_success_rate": rate.to_dict(), "clean_loss": loss}
            found["rows"].append({**row, "seconds": time.monotonic() - began})
            print(
                f"| {name} | {seed} | {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] | {loss:.3f} |",
                flush=True,
            )
            args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
