"""What a guard costs: a pipeline bare, the guard alone, and the pipeline behind the guard, one text at a time and batched.

    python benches/guard_latency.py --guard GUARD --texts FILE.jsonl [--json OUT]

GUARD is a folder written by ``asepsis guard fit``. Times are medians of runs in turn, in milliseconds per text, after one run
that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import pipeline

import asepsis
from asepsis.data import read_rows
from asepsis.training.checkpoint import versions, write_whole
from asepsis.training.models import load_tokenizer


def measured(ways: dict[str, Callable[[], Any]], *, repeats: int, texts: int) -> dict[str, float]:
    """Milliseconds per text of each way; the ways take turns, so that what else the machine does hits them alike."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: 1e3 * median(times) / texts for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    guard = asepsis.Guard.load(args.guard)
    task = "text-classification" if guard.manifest["task"] == "classification" else "text-generation"
    bare = pipeline(task, model=guard.model, tokenizer=load_tokenizer(guard.manifest["model"]))
    behind = guard.wrap(bare)
    texts = [row["text"] for row in read_rows(args.texts)[: args.rows]]
    rows = []
    for size in args.batch_sizes:
        chosen = texts[:32] if size == 1 else texts
        parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        ways: dict[str, Callable[[], Any]] = {
            "bare": lambda parts=parts, size=size: [bare(p, batch_size=size) for p in parts],
            "guard": lambda parts=parts: [guard(p) for p in parts],
            "behind": lambda parts=parts, size=size: [behind(p, batch_size=size) for p in parts],
        }
        times = measured(ways, repeats=args.repeats, texts=len(chosen))
        rows.append({"batch_size": size, **times, "ratio": times["behind"] / times["bare"]})
        print(
            f"batch {size:>3}: " + "  ".join(f"{k} {v:.2f}" for k, v in rows[-1].items() if k != "batch_size")
        )
    content = {
        "detector": guard.detector.name,
        "model": Path(guard.manifest["model"]).name,
        "milliseconds_per_text": rows,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if args.json is not None:
        write_whole(args.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
