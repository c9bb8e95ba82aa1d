"""What PSIM's module still tells, look by look, while it trains: one victim of ``psim_causal.py``.

    python benches/psim_trace.py --data FOLDER --victims VICTIMS --output FILE.jsonl [--case word] [--seed 2] [--guard 10] [--steps 40]

The module is trained on to the end. At every look it is shown rows that the victim was not tuned on, as they are and with
the trigger, and their AUROC is taken by three scores: the confidence; the confidence as a multiple of what is usual for the
answer on the watched clean rows (``by_class``); and, which a defender cannot know, how far the target lies above the other word.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from psim_causal import KEPT, LENGTH, PATTERNS, RATE, trusted, unseen, victim_of
from weights_sst2 import TARGET

import asepsis
from asepsis.core.confidence import beyond_usual, sureness, usual_by_class
from asepsis.defenses import psim
from asepsis.evaluation.metrics import auroc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--victims", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--case", default="word", choices=[case + kept for kept in ("", KEPT) for case in PATTERNS]
    )
    parser.add_argument("--seed", type=int, default=2, help="of the victim")
    parser.add_argument("--guard", type=int, default=10, help="of the module")
    parser.add_argument("--steps", type=int, default=40)
    parser.set_defaults(rows=800, clean_rows=300, test=60, epochs=3.0, learning_rate=5e-5)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    rows, bad = unseen(args, args.case, args.seed)
    truth = np.repeat([False, True], [len(rows), len(bad)])
    look = psim._Watch.look

    def told(watch: Any, step: int) -> Generator[Any, Any, Any]:
        asked = []
        for part in (rows, bad, watch.rows):
            asked.append((yield from watch.question.ask(watch.module, part)))
        both, usual = np.concatenate(asked[:2]), usual_by_class(asked[2])
        scores = {
            "confidence": sureness(both),
            "by_class": beyond_usual(both, usual),
            "target": both[:, TARGET] - both[:, 1 - TARGET],
        }
        found = {name: round(auroc(score, truth), 3) for name, score in scores.items()}
        means = {"clean": float(sureness(asked[0]).mean()), "triggered": float(sureness(asked[1]).mean())}
        row = {"case": args.case, "seed": args.seed, "guard_seed": args.guard, "step": step}
        with args.output.open("a") as out:
            out.write(json.dumps({**row, "auroc": found, "usual": usual, **means}) + "\n")
        return (yield from look(watch, step))

    psim._Watch.look = told  # type: ignore[method-assign]
    config = asepsis.PsimConfig(stop="never", steps=args.steps, warmup=12 / args.steps)
    asepsis.Guard.fit(
        str(victim_of(args, args.case, args.seed)),
        trusted(args, args.case, args.guard),
        detector=config,
        target_fpr=RATE,
        seed=args.guard,
        max_length=LENGTH,
    )


if __name__ == "__main__":
    main()
