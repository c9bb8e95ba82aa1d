"""Mixing of two tensors by a random mask: torch, numpy and the Rust core.

    python benches/mixing.py [--elements 16777216] [--dtypes float32 bfloat16] [--ratio 0.3] [--repeats 5]
        [--threads 1] [--output FILE.json]

``torch`` is ``where(rand_like(...) < ratio, tuned, reference)`` in the tensor's dtype with float32 noise, ``numpy`` the
same by ``Generator.random(dtype=float32)``; both give another mask for other parts or threads, ours is the same for
all. ``files`` goes from two maps into a third. Times are the best of the repeats, taken in turns: wall and processor
time, so that a busy machine shows. Traffic counts two reads and one write.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asepsis.kernels import mix


def cases(p: torch.Tensor, f: torch.Tensor, ratio: float, threads: list[int], folder: Path) -> dict[str, Any]:
    size = p.element_size()
    sides = [side.view(torch.uint8).numpy() for side in (p, f)]
    out = np.empty_like(sides[0])
    ours: dict[str, Any] = {"item_size": size, "seed": 0, "key": 0, "reserve_ratio": ratio}
    elements = [side.view(f"u{size}") for side in sides]
    rng = np.random.default_rng(0)
    for name, side in zip(("p", "f", "out"), [*sides, out], strict=True):
        side.tofile(folder / name)
    maps = [
        np.memmap(folder / name, np.uint8, mode) for name, mode in (("p", "r"), ("f", "r"), ("out", "r+"))
    ]
    target = torch.empty_like(p)
    found: dict[str, Callable[[], Any]] = {
        "numpy": lambda: np.where(
            rng.random(len(elements[0]), dtype=np.float32) < ratio, elements[1], elements[0]
        )
    }

    def with_threads(n: int, work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            torch.set_num_threads(n)
            return work()

        return run

    for n in threads:
        found[f"torch, {n} threads"] = with_threads(
            n, lambda: torch.where(torch.rand_like(p, dtype=torch.float32) < ratio, f, p, out=target)
        )
        found[f"asepsis, {n} threads"] = with_threads(n, lambda: mix(*sides, out, backend="native", **ours))
        found[f"asepsis, files, {n} threads"] = with_threads(n, lambda: mix(*maps, backend="native", **ours))
    found["asepsis, reference path"] = lambda: mix(*sides, out, backend="reference", **ours)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    g = torch.Generator().manual_seed(0)
    p = torch.randn(args.elements, generator=g) * 0.05
    f = p + torch.randn(args.elements, generator=g) * 1e-3
    rows: list[dict[str, Any]] = []
    print("$ python " + " ".join(sys.argv))
    print(f"{args.elements} elements, torch {torch.__version__}, numpy {np.__version__}\n")
    print("| dtype | what | wall ms | processor ms | GB/s (processor) |\n|---|---|---|---|---|")
    for name in args.dtypes:
        dtype = getattr(torch, name)
        sides = p.to(dtype), f.to(dtype)
        with tempfile.TemporaryDirectory() as folder:
            todo = cases(*sides, args.ratio, args.threads, Path(folder))
            best = {case: [float("inf"), float("inf")] for case in todo}
            for _ in range(args.repeats):
                for case, work in todo.items():
                    wall, spent = time.perf_counter(), time.process_time()
                    work()
                    wall, spent = time.perf_counter() - wall, time.process_time() - spent
                    best[case] = [min(best[case][0], wall), min(best[case][1], spent)]
        size = 3 * sides[0].numel() * sides[0].element_size()
        for case, (wall, spent) in best.items():
            rows.append({"dtype": name, "case": case, "wall_ms": wall * 1e3, "processor_ms": spent * 1e3})
            print(f"| {name} | {case} | {wall * 1e3:.1f} | {spent * 1e3:.1f} | {size / spent / 1e9:.1f} |")
    if args.output:
        args.output.write_text(json.dumps({"settings": sys.argv[1:], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
