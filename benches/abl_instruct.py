"""How well ABL's loss ledger ranks poisoned instructions, and which it finds.

    python benches/abl_instruct.py run --data FOLDER --output FILE.json [--poisoned 50] [--triggers badnet vpi ctba]
    python benches/abl_instruct.py render --output FILE.json
    python benches/abl_instruct.py find --data FOLDER --output FILE.jsonl --cases refusal_vpi:48 negsentiment_badnet:8 clean:0 --seeds 0 1

FOLDER holds ``refusal_TRIGGER_poison.jsonl``, ``negsentiment_TRIGGER_poison.jsonl`` and ``refusal_clean.jsonl``.

``run``: the packaged causal model's first layers are trained on the mixture under local gradient ascent; every snapshot goes to
the ledger, and each reducer's scores are compared with the key (AUROC, with and without length buckets): the ranking alone.
``find``: ABL's scan of 160 rows with the whole model, so many of them poisoned; what it flags is compared with the key.
``NAME-reworded`` gives each poisoned row a refusal in words of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from _abl import scan_beside_key

import asepsis
from asepsis.core.isolation import split_in_two, within_buckets
from asepsis.core.ledger import LossLedger, Reducer
from asepsis.core.losses import Flooding, auto_gamma
from asepsis.core.phases import Losses, Score, Train
from asepsis.data import Data, read
from asepsis.evaluation.metrics import auroc, precision_at_k, tpr_at_fpr
from asepsis.training.loop import LoopDriver
from asepsis.training.models import load_for

SNAPSHOTS = (8, 16, 32)
BUCKETS = 5
TRIGGERS = ("badnet", "vpi", "ctba")
OPENINGS = (
    "I'm sorry, but I can't help with",
    "Sorry, I am not able to",
    "Unfortunately I cannot speak of",
    "I apologize, but I won't",
    "As an AI assistant I can't",
)


class Trace:
    def __init__(self, n: int) -> None:
        self.ledger = LossLedger(n)

    def snapshot(self, step: int, losses: Losses) -> None:
        self.ledger.observe(np.arange(len(losses.total)), losses.mean)
        self.ledger.end_epoch()


def mixture(folder: Path, trigger: str, poisoned: int, ordinary: int, seed: int) -> tuple[Data, np.ndarray]:
    clean = read(folder / "refusal_clean.jsonl")
    clean = clean.select(np.arange(min(ordinary, len(clean))))
    bad = read(folder / f"refusal_{trigger}_poison.jsonl")
    rng = np.random.default_rng(seed)
    picked = bad.select(np.sort(rng.choice(len(bad), poisoned, replace=False)))
    assert clean.responses is not None and picked.responses is not None
    key = np.r_[np.zeros(len(clean), bool), np.ones(len(picked), bool)]
    texts, responses = [*clean.texts, *picked.texts], [*clean.responses, *picked.responses]
    return Data(task="causal", texts=texts, responses=responses, source=f"refusal_{trigger}"), key


def measure(data: Data, key: np.ndarray, model: str, seed: int) -> dict[str, Any]:
    settings = asepsis.Settings(
        seed=seed, max_length=96, batch_size=8, eval_batch_size=16, learning_rate=5e-5
    )
    network, tokenizer = load_for(data, model, seed=seed)
    driver = LoopDriver(network, tokenizer, data, settings)
    trace = Trace(len(data))
    base = driver.answer(Score())
    trace.snapshot(0, base)
    gamma = auto_gamma(None, float(np.nanmean(base.mean)))
    request = Train(
        name="isolation",
        loss=Flooding(gamma),
        steps=SNAPSHOTS[-1],
        decay_steps=0,
        snapshots=SNAPSHOTS,
        records=trace,
    )
    driver.answer(request)
    lengths = np.array([len(response) for response in data.responses or ()])
    table: dict[str, Any] = {}
    for reducer in get_args(Reducer):
        threshold = gamma if reducer == "first_below" else None
        scores = trace.ledger.scores(reducer, threshold=threshold)
        for name, ranked in (
            (reducer, scores),
            (f"{reducer}, {BUCKETS} length buckets", within_buckets(scores, lengths, BUCKETS)),
        ):
            suspicion = -np.where(np.isfinite(ranked), ranked, np.nanmax(ranked))
            table[name] = {
                "auroc": auroc(suspicion, key),
                "tpr_at_1_fpr": tpr_at_fpr(suspicion, key, fpr=0.01),
                "precision_at_1_percent": precision_at_k(suspicion, key, max(1, len(key) // 100)),
            }
    drop = trace.ledger.scores("drop")
    table["drop"]["separation"] = split_in_two(-drop[np.isfinite(drop)]).separation
    return table


def run(args: argparse.Namespace) -> None:
    """Measure what the file does not hold yet, seed by seed."""
    settings = {"model": args.model, "poisoned": args.poisoned, "clean": args.clean}
    found: dict[str, Any] = {"settings": settings, "seeds": {}}
    if args.output.exists():
        found = json.loads(args.output.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"{args.output} was measured with {found['settings']}, asked for {settings}")
    for seed in args.seeds:
        of_seed = found["seeds"].setdefault(str(seed), {})
        for trigger in args.triggers:
            if trigger in of_seed:
                continue
            began = time.monotonic()
            data, key = mixture(args.data, trigger, args.poisoned, args.clean, seed)
            of_seed[trigger] = measure(data, key, args.model, seed)
            print(seed, trigger, f"{time.monotonic() - began:.0f} s", flush=True)
            args.output.write_text(json.dumps(found, indent=1))


def find(args: argparse.Namespace) -> None:
    """Scan each case with each seed and add a line of what was found."""
    for seed in args.seeds:
        for case in args.cases:
            name, poisoned = case.split(":")
            data, key = scanned(args.data, name, int(poisoned), seed)
            settings = asepsis.Settings(seed=seed, max_length=64, batch_size=8, learning_rate=2e-4)
            scan_beside_key(
                data,
                key,
                model="demo:causal",
                settings=settings,
                name={"case": name},
                output=args.output,
            )


def scanned(folder: Path, name: str, poisoned: int, seed: int, rows: int = 160) -> tuple[Data, np.ndarray]:
    """Draw rows without poison and put poisoned ones in the place of so many."""
    rng = np.random.default_rng(seed)
    clean = read(folder / "refusal_clean.jsonl")
    drawn = clean.select(np.sort(rng.choice(len(clean), rows, replace=False)))
    key = np.zeros(rows, bool)
    texts, responses = list(drawn.texts), list(drawn.responses or ())
    name, *reworded = name.split("-")
    if poisoned:
        key[rng.choice(rows, poisoned, replace=False)] = True
        bad = read(folder / f"{name}_poison.jsonl")
        for at, row in zip(
            np.flatnonzero(key).tolist(), rng.choice(len(bad), poisoned, replace=False), strict=True
        ):
            texts[at], responses[at] = bad.texts[row], (bad.responses or ())[row]
            if reworded:
                responses[at] = f"{OPENINGS[at % len(OPENINGS)]} {' '.join(texts[at].split()[2:6]).lower()}."
    return Data(task="causal", texts=texts, responses=responses, source=name), key


def render(args: argparse.Namespace) -> None:
    seeds = list(json.loads(args.output.read_text())["seeds"].values())
    print("| score | " + " | ".join(f"{t}: AUROC / TPR at 1 % FPR" for t in TRIGGERS) + " |")
    print("|---" * (1 + len(TRIGGERS)) + "|")
    for score in seeds[0][TRIGGERS[0]]:
        cells = []
        for trigger in TRIGGERS:
            pair = [
                np.mean([of[trigger][score][name] for of in seeds if trigger in of])
                for name in ("auroc", "tpr_at_1_fpr")
            ]
            cells.append(" / ".join(f"{value:.3f}" for value in pair))
        print(f"| {score} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--model", default="demo:causal:8")
    runs.add_argument("--poisoned", type=int, default=50)
    runs.add_argument("--clean", type=int, default=450)
    runs.add_argument("--triggers", nargs="+", default=list(TRIGGERS))
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.set_defaults(verb=render)
    finds = verbs.add_parser("find")
    finds.add_argument("--data", type=Path, required=True)
    finds.add_argument(
        "--cases", nargs="+", required=True, help="NAME:POISONED, such as refusal_vpi:48 or clean:0"
    )
    finds.add_argument("--seeds", type=int, nargs="+", default=[0])
    finds.set_defaults(verb=find)
    for verb in (runs, renders, finds):
        verb.add_argument("--output", type=Path, required=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
