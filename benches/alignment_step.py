"""What gradient alignment costs: time of one training step, operations and host synchronizations of the rule.

    python benches/alignment_step.py [--model demo:encoder] [--batch 32] [--tokens 64] [--repeats 15] [--output FILE.json]

Rows, timed in turns in one process, forward, backward, rule, clipping and AdamW included:

* ``plain LoRA``: the same low-rank layers without alignment, on the batch;
* ``plain, doubled batch``: the same on batch and reference rows together, the least two gradients can cost;
* ``one pass`` and ``two passes``: full MuScleLoRA as it trains;
* ``literal``: two passes and the rule written tensor by tensor with a host decision for each, as the formulas read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asepsis import Data, MuscleloraConfig
from asepsis.core.alignment import Alignment
from asepsis.core.lora import insert
from asepsis.core.losses import LossRule
from asepsis.defenses.musclelora import Musclelora
from asepsis.kernels import Segments, gradient_alignment
from asepsis.training.align import Aligner
from asepsis.training.collate import Batch, Collator
from asepsis.training.forward import autocast, mean_losses, resolve_precision
from asepsis.training.models import load_for


class Count(TorchDispatchMode):
    """Counts operations, and those that make the host wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.waits += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def rows_of(n: int, tokens: int, seed: int) -> Data:
    """Rows of one length, so that padding plays no part in the comparison."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(["good", "bad", "film", "plot"], tokens - 2)) for _ in range(n)]
    return Data(task="classification", texts=texts, labels=rng.integers(2, size=n), n_classes=2)


class Step:
    """One kind of step on one model."""

    def __init__(self, kind: str, args: argparse.Namespace) -> None:
        self.kind = kind
        data, reference = rows_of(args.batch, args.tokens, 0), rows_of(args.batch, args.tokens, 1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = resolve_precision("auto", self.device)
        self.model, tokenizer = load_for(data, args.model)
        scales = {} if args.model == "demo:encoder" else {"scales": (1, 2, 3, 4)}
        insert(self.model, Musclelora(MuscleloraConfig(**scales)).branches(self.model))
        self.model.to(self.device).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        rows = data if kind != "plain, doubled batch" else rows_of(2 * args.batch, args.tokens, 0)
        collate = Collator(tokenizer, rows, max_length=args.tokens)
        self.batch = self._weighed(collate([(p, False) for p in range(len(rows))]))
        clean = Collator(tokenizer, reference, max_length=args.tokens)
        self.clean = self._weighed(clean([(p, False) for p in range(len(reference))]))
        self.aligner = None
        if kind in ("one pass", "two passes"):
            passes: Any = kind.split()[0]
            self.aligner = Aligner(
                Alignment(reference=reference, batch_size=args.batch, passes=passes),
                self.model,
                tokenizer,
                max_length=args.tokens,
                epochs=1,
                steps=10_000,
                micro_batches=1,
                seed=0,
            )
        self.done = 0

    def _weighed(self, batch: Batch) -> Batch:
        batch.weight = torch.full((len(batch.count),), 1 / len(batch.count))
        return batch.to(self.device)

    def __call__(self) -> None:
        if self.aligner is not None:
            self.aligner.begin(self.done)
        with autocast(self.device, self.dtype):
            if self.aligner is None:
                loss = (self.batch.weight * mean_losses(self.model, self.batch)).sum()
            else:
                _, loss = self.aligner.losses(self.model, self.batch, 0, LossRule())
        loss.backward()
        if self.aligner is not None:
            with autocast(self.device, self.dtype):
                self.aligner.finish(0)
            self.aligner.align()
        elif self.kind == "literal":
            self._literal()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _literal(self) -> None:
        with autocast(self.device, self.dtype):
            loss = (self.clean.weight * mean_losses(self.model, self.clean)).sum()
        found = torch.autograd.grad(loss, self.parameters)
        norms = [r.norm() for r in found]
        mean_norm = torch.stack([n for n in norms if n > 0]).mean()
        if not (mean_norm > 5e-7 and loss > 0.4):
            return
        for parameter, r in zip(self.parameters, found, strict=True):
            g = parameter.grad
            if g is not None and g.norm() > 0 and r.norm() > 0:
                parameter.grad = (g * r).sum().abs() / (r * r).sum() * r


def time_in_turns(steps: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Seconds of each step, the rows taking turns so that a busy machine is busy for all."""
    seconds: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
        step()
    for _ in range(repeats):
        for taken, step in zip(seconds, steps, strict=True):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
    return seconds


def count_rule(n: int) -> tuple[int, int]:
    """Operations and host waits of the rule on ``n`` tensors."""
    sizes = [64 + i % 7 for i in range(n)]
    grads, reference = torch.randn(sum(sizes)), torch.randn(sum(sizes))
    segments = Segments.of(sizes)
    with Count() as count:
        gradient_alignment(grads, reference, segments, reference_loss=torch.tensor(1.0))
    return count.operations, count.waits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo:encoder")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args = parser.parse_args()
    kinds = ["plain LoRA", "plain, doubled batch", "one pass", "two passes", "literal"]
    seconds = time_in_turns([Step(kind, args) for kind in kinds], args.repeats)
    doubled = statistics.median(seconds[1])
    found: dict[str, Any] = {
        "settings": {
            "model": args.model,
            "batch": args.batch,
            "tokens": args.tokens,
            "repeats": args.repeats,
        },
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "rows": {},
        "rule": {
            str(n): dict(zip(("operations", "waits"), count_rule(n), strict=True)) for n in (10, 50, 500)
        },
    }
    print("| step | median ms | fastest ms | over a plain step on the doubled batch |\n|---|---|---|---|")
    for kind, taken in zip(kinds, seconds, strict=True):
        middle, best = statistics.median(taken), min(taken)
        found["rows"][kind] = {"median_ms": 1e3 * middle, "fastest_ms": 1e3 * best}
        print(f"| {kind} | {1e3 * middle:.1f} | {1e3 * best:.1f} | {middle / doubled:.2f} |")
    for n, counts in found["rule"].items():
        print(f"rule on {n} tensors: {counts['operations']} operations, {counts['waits']} host waits")
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
