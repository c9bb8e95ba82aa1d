"""Whether several modules of PSIM tell more together than one: a victim of ``psim_causal.py``.

    python benches/psim_together.py --data FOLDER --victims VICTIMS --output FILE.jsonl --case word-clean-label --seed 2 [--guards 2 10 11 12]

Each module is fitted on the same clean rows with a seed of its own, and judged on training rows that the victim was not tuned on.
Together an input's suspicion is the largest or the mean of theirs; a line has the AUROC of each and, for every number of
modules, that of all choices of so many.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from psim_causal import KEPT, LENGTH, PATTERNS, RATE, trusted, unseen, victim_of

import asepsis
from asepsis.errors import AsepsisError
from asepsis.evaluation.metrics import auroc


def joint(suspicion: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """AUROC of modules, suspicion [modules, N], alone and of every choice of two and more."""
    found: dict[str, Any] = {"alone": [round(auroc(one, truth), 3) for one in suspicion]}
    for size in range(2, len(suspicion) + 1):
        chosen = [suspicion[list(at)] for at in combinations(range(len(suspicion)), size)]
        found[f"{size}, largest"] = [round(auroc(some.max(axis=0), truth), 3) for some in chosen]
        found[f"{size}, mean"] = [round(auroc(some.mean(axis=0), truth), 3) for some in chosen]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--victims", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--case", required=True, choices=[c + kept for kept in ("", KEPT) for c in PATTERNS])
    parser.add_argument("--seed", type=int, required=True, help="of the victim, and of the clean rows")
    parser.add_argument("--guards", type=int, nargs="+", default=[2, 10, 11, 12], help="seeds of the modules")
    parser.set_defaults(rows=800, clean_rows=300, test=150, epochs=3.0, learning_rate=5e-5)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    folder = str(victim_of(args, args.case, args.seed))
    parts, clean = unseen(args, args.case, args.seed), trusted(args, args.case, args.seed)
    options: dict[str, Any] = {"detector": "psim", "target_fpr": RATE, "max_length": LENGTH}
    asked, refused = [], {}
    for seed in args.guards:
        try:
            guard = asepsis.Guard.fit(folder, clean, seed=seed, **options)
        except AsepsisError as error:
            refused[seed] = f"{type(error).__name__}: {error}"
        else:
            asked.append(np.concatenate([guard.check(rows).suspicion for rows in parts]))
    found = joint(np.stack(asked), np.repeat([False, True], [len(rows) for rows in parts]))
    with args.output.open("a") as out:
        row = {
            "case": args.case,
            "seed": args.seed,
            "guards": args.guards,
            "refused": refused,
            "auroc": found,
        }
        out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
