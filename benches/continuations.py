"""What a cache of keys and values gives the greedy continuations that PSIM scores free answers by.

    python benches/continuations.py --texts FILE.jsonl [--rows 32] [--tokens 12] [--batch-sizes 1 32]

Milliseconds per prompt on the packaged causal model, medians of runs in turn after one that is not counted: the prompt alone
(one pass), continued by a cache, and continued by reading the whole text for each token.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from guard_latency import measured

from asepsis.data import Data, read
from asepsis.training import Settings
from asepsis.training.decode import continue_rows
from asepsis.training.forward import autocast, full_precision_head
from asepsis.training.loop import LoopDriver
from asepsis.training.models import load_for


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=3)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    whole = read(args.texts)
    rows: Data = whole.select(range(min(args.rows, len(whole))))
    model, tokenizer = load_for(rows, "demo:causal")
    model.eval()
    driver = LoopDriver(model, tokenizer, rows, Settings(max_length=128))
    prompts = driver.rows_of(rows).read_ids(range(len(rows)), part="inputs")
    print(f"{len(prompts)} prompts of {np.mean([len(p) for p in prompts]):.0f} tokens on average")
    for size in args.batch_sizes:
        parts = [prompts[i : i + size] for i in range(0, len(prompts), size)]

        def go_on(tokens: int, *, cached: bool, parts: Any = parts) -> Callable[[], Any]:
            def way() -> None:
                with autocast(driver.device, driver.dtype), full_precision_head(model):
                    for part in parts:
                        continue_rows(
                            model,
                            part,
                            tokens=tokens,
                            tokenizer=tokenizer,
                            device=driver.device,
                            cached=cached,
                        )

            return way

        ways = {
            "one token": go_on(1, cached=False),
            "by a cache": go_on(args.tokens, cached=True),
            "whole text each": go_on(args.tokens, cached=False),
        }
        times = measured(ways, repeats=args.repeats, texts=len(prompts))
        print(f"batch {size:>3}: " + "  ".join(f"{name} {took:.1f}" for name, took in times.items()))


if __name__ == "__main__":
    main()
