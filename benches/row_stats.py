"""Row statistics of two matrices: numpy, torch and the Rust core.

    python benches/row_stats.py [--rows 32000] [--columns 768] [--dtypes float32 bfloat16] [--repeats 7] [--threads 1]
        [--output FILE.json]

Every row of the table computes the same: delta², delta·reference, reference², |delta|, the largest |delta| and its
column, zeros, what is not finite, and column sums of delta and delta². ``numpy`` and ``torch`` make whole
intermediates, ``blocked`` goes by 512 rows, ``files`` reads both matrices from a file by a map. Times are the best
of the repeats, taken in turns: wall and processor time, so that a busy machine shows.
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

from asepsis.kernels import Stored, row_stats
from asepsis.kernels.row_stats import row_stats_files

BLOCK = 512


def by_numpy(p: np.ndarray, f: np.ndarray) -> dict[str, Any]:
    e = f.astype(np.float32) - p.astype(np.float32)
    size = np.abs(e)
    return {
        "delta_squared": (e * e).sum(1),
        "delta_dot": (e * p).sum(1),
        "reference_squared": (p * p).sum(1),
        "delta_abs": size.sum(1),
        "delta_max": size.max(1),
        "delta_argmax": size.argmax(1),
        "zeros": (e == 0).sum(1),
        "non_finite": (~np.isfinite(e)).sum(1),
        "columns": np.stack([e.sum(0), (e * e).sum(0)]),
    }


def by_numpy_einsum(p: np.ndarray, f: np.ndarray) -> dict[str, Any]:
    e = f - p
    size = np.abs(e)
    squares = e * e
    return {
        "delta_squared": squares.sum(1),
        "delta_dot": np.einsum("vd,vd->v", e, p),
        "reference_squared": np.einsum("vd,vd->v", p, p),
        "delta_abs": size.sum(1),
        "delta_max": size.max(1),
        "delta_argmax": size.argmax(1),
        "zeros": e.shape[1] - np.count_nonzero(e, axis=1),
        "non_finite": e.shape[1] - np.count_nonzero(np.isfinite(e), axis=1),
        "columns": np.stack([e.sum(0), squares.sum(0)]),
    }


def by_torch(p: torch.Tensor, f: torch.Tensor) -> dict[str, Any]:
    p = p.float()
    e = f.float() - p
    size, squares = e.abs(), e * e
    largest = size.max(1)
    return {
        "delta_squared": squares.sum(1),
        "delta_dot": (e * p).sum(1),
        "reference_squared": (p * p).sum(1),
        "delta_abs": size.sum(1),
        "delta_max": largest.values,
        "delta_argmax": largest.indices,
        "zeros": (e == 0).sum(1),
        "non_finite": (~e.isfinite()).sum(1),
        "columns": torch.stack([e.sum(0), squares.sum(0)]),
    }


def blocked(by: Callable[[Any, Any], dict[str, Any]], join: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def run(p: Any, f: Any) -> dict[str, Any]:
        parts = [by(p[i : i + BLOCK], f[i : i + BLOCK]) for i in range(0, len(p), BLOCK)]
        rows = {name: join([part[name] for part in parts]) for name in parts[0] if name != "columns"}
        return {**rows, "columns": sum(part["columns"] for part in parts)}

    return run


def cases(p: torch.Tensor, f: torch.Tensor, threads: list[int], folder: Path) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    if p.dtype is torch.float32:
        arrays = p.numpy(), f.numpy()
        found["numpy"] = lambda: by_numpy(*arrays)
        found["numpy, blocked"] = lambda: blocked(by_numpy_einsum, np.concatenate)(*arrays)
    places = []
    for side, matrix in (("reference", p), ("tuned", f)):
        path = folder / f"{side}.{str(p.dtype).removeprefix('torch.')}"
        matrix.view(torch.uint8).numpy().tofile(path)
        dtype: Any = str(p.dtype).removeprefix("torch.")
        places.append(Stored(path=path, offset=0, shape=(p.shape[0], p.shape[1]), dtype=dtype))

    def with_threads(n: int, work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            torch.set_num_threads(n)
            return work()

        return run

    for n in threads:
        found[f"torch, {n} threads"] = with_threads(n, lambda: by_torch(p, f))
        found[f"torch, blocked, {n} threads"] = with_threads(n, lambda: blocked(by_torch, torch.cat)(p, f))
        found[f"asepsis, {n} threads"] = with_threads(
            n, lambda: row_stats(p, f, columns=True, backend="native")
        )
        found[f"asepsis, files, {n} threads"] = with_threads(
            n, lambda: row_stats_files(places[0], places[1], columns=True)
        )
    found["asepsis, no columns, 1 threads"] = with_threads(1, lambda: row_stats(p, f, backend="native"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32000)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    g = torch.Generator().manual_seed(0)
    p = torch.randn(args.rows, args.columns, generator=g) * 0.05
    f = p + torch.randn(args.rows, args.columns, generator=g) * 1e-3
    rows: list[dict[str, Any]] = []
    print("$ python " + " ".join(sys.argv))
    print(f"{args.rows} x {args.columns}, torch {torch.__version__}, numpy {np.__version__}\n")
    print("| dtype | what | wall ms | processor ms | GB/s (processor) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.dtypes:
            dtype = getattr(torch, name)
            sides = p.to(dtype), f.to(dtype)
            todo = cases(*sides, args.threads, Path(folder))
            best = {case: [float("inf"), float("inf")] for case in todo}
            for _ in range(args.repeats):
                for case, work in todo.items():
                    wall, spent = time.perf_counter(), time.process_time()
                    work()
                    wall, spent = time.perf_counter() - wall, time.process_time() - spent
                    best[case] = [min(best[case][0], wall), min(best[case][1], spent)]
            size = 2 * sides[0].numel() * sides[0].element_size()
            for case, (wall, spent) in best.items():
                rows.append({"dtype": name, "case": case, "wall_ms": wall * 1e3, "processor_ms": spent * 1e3})
                print(
                    f"| {name} | {case} | {wall * 1e3:.1f} | {spent * 1e3:.1f} | {size / spent / 1e9:.1f} |"
                )
    if args.output:
        args.output.write_text(json.dumps({"settings": sys.argv[1:], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
