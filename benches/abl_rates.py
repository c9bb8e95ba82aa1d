"""From which poison rate on ABL finds a word, and what it flags where there is none.

    python benches/abl_rates.py run --grid benches/grids/sst2.yaml --data FOLDER --output FILE.jsonl --cases badnets:0.05 clean:0 --seeds 10 11
    python benches/abl_rates.py render --output FILE.jsonl

The rows are the grid's: so many of FOLDER's training file as it says, drawn and poisoned by the seed; without --data the packaged
reviews. Training rows alone are read. Settings of ABL were chosen on SST-2 rows of seeds from 10 on, which the grid does not
have. Each scan adds a line to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from _abl import scan_beside_key

from asepsis.evaluation.grid import read_grid
from asepsis.evaluation.grid.plan import Cell
from asepsis.evaluation.grid.sources import sources


def run(args: argparse.Namespace) -> None:
    grid = read_grid(args.grid)
    if args.data is None:
        grid = replace(grid, data="packaged")
    for seed in args.seeds:
        for case in args.cases:
            attack, rate = case.split(":")
            declared = {"attack": attack, "poison_rate": float(rate)} if float(rate) else {}
            name = f"{attack}-{rate}"
            rows = sources(replace(grid, attacks={name: declared}), args.data, Cell(name, "abl", seed))
            scan_beside_key(
                rows.train,
                rows.key.for_ids(rows.train.sample_ids),
                model=grid.model,
                settings=grid.settings_of(seed),
                name={
                    "text": "own" if args.data else "packaged",
                    "case": attack,
                    "rate": float(rate),
                    "rows": len(rows.train),
                },
                output=args.output,
            )


def render(args: argparse.Namespace) -> None:
    lines = [json.loads(line) for line in args.output.read_text().splitlines()]
    print(
        "| text | attack | poisoned rows | seed | verdict | flagged: poison / clean | AUROC | separation, as the tests came |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for line in sorted(lines, key=lambda line: (line["text"], line["case"], line["rate"], line["seed"])):
        tried = ", ".join(f"{test['separation']:.2f}" for test in line["tried"])
        ranked = "" if line["auroc"] is None else f"{line['auroc']:.3f}"
        flagged = f"{line['flagged_poison']} / {line['flagged_clean']}"
        print(
            f"| {line['text']} | {line['case']} | {line['poisoned']} of {line['rows']:,} ({100 * line['rate']:g} %) | {line['seed']} | {line['verdict']} "
            f"| {flagged} | {ranked} | {tried} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--grid", type=Path, required=True)
    runs.add_argument("--data", type=Path)
    runs.add_argument(
        "--cases", nargs="+", required=True, help="ATTACK:RATE, such as badnets:0.05 or clean:0"
    )
    runs.add_argument("--seeds", type=int, nargs="+", required=True)
    runs.set_defaults(verb=run)
    renders = verbs.add_parser("render")
    renders.set_defaults(verb=render)
    for verb in (runs, renders):
        verb.add_argument("--output", type=Path, required=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
