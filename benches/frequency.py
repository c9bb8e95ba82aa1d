"""Which part of the labels an undefended model learns first, on poisoned training rows.

    python benches/frequency.py run --data TRAIN --model demo:encoder --steps 200 --output curves.json
    python benches/frequency.py plot --input curves.json --output curves.svg [--all]

TRAIN has the answer key in a column ``poisoned``. It is the only data read: the probe looks at training rows, and test
rows have no part in this.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from asepsis import Settings
from asepsis.data import read, read_rows
from asepsis.errors import DataError
from asepsis.evaluation.frequency import PAPER_SIGMAS, frequency_of_training, frequency_svg
from asepsis.evaluation.key import PoisonKey
from asepsis.training.checkpoint import versions

LEVELS = (0.5, 0.3, 0.2, 0.1)


def load_key(path: Path, sample_ids: np.ndarray) -> PoisonKey:
    rows = read_rows(path)
    if "poisoned" not in rows[0]:
        raise DataError(f"{path}: no column 'poisoned' to tell the poisoned rows by, 0 or 1")
    return PoisonKey(sample_ids, np.array([str(row["poisoned"]).lower() in ("1", "true") for row in rows]))


def run(args: argparse.Namespace) -> None:
    if "test" in args.data.name.lower():
        args.refuse(f"{args.data.name} looks like test rows; give training rows")
    began = time.monotonic()
    data = read(args.data)
    settings = Settings(
        max_steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_length=64,
        seed=args.seed,
    )
    probe = frequency_of_training(
        args.model,
        data,
        load_key(args.data, data.sample_ids),
        settings=settings,
        every=args.every,
        probe_rows=args.probe_rows,
        sigmas=PAPER_SIGMAS if args.paper_sigmas else None,
        kernel=args.kernel,
    )
    converged = {
        f"{level:g}": {f"{sigma:g}": probe.converged_at(level, sigma=sigma) for sigma in probe.sigmas}
        for level in LEVELS
    }
    content = {
        "model": args.model,
        "data": {"name": args.data.name, "rows": len(data), "fingerprint": data.fingerprint},
        "settings": vars(settings),
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
        "converged_at": converged,
        **probe.to_dict(),
    }
    scratch = args.output.with_suffix(".part")
    scratch.write_text(json.dumps(content, indent=1, allow_nan=False))
    scratch.replace(args.output)
    for level in LEVELS:
        print(probe.verdict(level))
    print(args.output.name, f"{content['seconds']} s", file=sys.stderr)


def plot(args: argparse.Namespace) -> None:
    record = json.loads(args.input.read_text())
    note = f"{Path(record['model']).name} on {record['data']['name']}, no defense"
    picture = frequency_svg(record, sigmas=record["sigmas"] if args.all else None, note=note)
    args.output.write_text(picture, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--data", type=Path, required=True, help="training rows with a column 'poisoned'")
    runs.add_argument("--model", default="demo:encoder")
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--steps", type=int, default=200)
    runs.add_argument("--every", type=int, default=5)
    runs.add_argument("--probe-rows", type=int, default=400)
    runs.add_argument("--batch-size", type=int, default=32)
    runs.add_argument("--learning-rate", type=float, default=5e-5)
    runs.add_argument("--kernel", choices=("laplace", "gauss"), default="laplace")
    runs.add_argument("--paper-sigmas", action="store_true", help="the 25 widths of the authors' code")
    runs.add_argument("--seed", type=int, default=0)
    runs.set_defaults(verb=run, refuse=runs.error)
    plots = verbs.add_parser("plot")
    plots.add_argument("--input", type=Path, required=True)
    plots.add_argument("--output", type=Path, required=True)
    plots.add_argument("--all", action="store_true", help="a panel for every width instead of the middle one")
    plots.set_defaults(verb=plot)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
