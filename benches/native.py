"""The Rust core beside what one would use without it, on one thread each, with goals and whether they are met.

    make bench-native                         (or, with the packages of the `bench` group installed:)
    python benches/native.py [--values 10000000] [--rows 32000] [--columns 768] [--seconds 1]
        [--odd-values 2000000] [--huge 100000000] [--parts statistics ...]
        [--baseline _native.so] [--output FILE.json]

Each table row is one job. Its competitors take turns, in one process and on the same data, and are measured in
processor time of the whole process, so that a busy machine shows as little as it can; the median of the turns counts.
There are at least three turns, at most fifty, and about ``--seconds`` of them a competitor. All answers are compared
before they are timed. ``--odd-values`` is the length of the inputs chosen to be hard. A ratio above 1 says that ours took less. ``--huge`` is the N of goal R10, 0 to leave it out;
``--baseline`` is another build of the extension module, timed for goal R11 as if it were the other one.

Goals: R1-R4 row statistics, R5-R7 the k lowest, R8 argsort, R9 the lowest of every class, R10 a very long array.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger_writes import ledger
from row_stats import blocked, by_numpy, by_numpy_einsum, by_torch

from asepsis import _native
from asepsis.kernels import row_stats

Case = Callable[[], Any]
PARTS = ("statistics", "lowest", "sorts", "classes", "ledger", "huge")


def measure(cases: dict[str, Case], seconds: float) -> dict[str, list[float]]:
    """Processor milliseconds of every turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for turn in range(50):
        for name, case in cases.items():
            if turn >= 3 and sum(times[name]) > 1e3 * seconds:
                continue
            start = time.process_time()
            case()
            times[name].append((time.process_time() - start) * 1e3)
    return times


def argpartition(x: np.ndarray, k: int) -> np.ndarray:
    lowest = np.argpartition(x, k - 1)[:k]
    return lowest[np.argsort(x[lowest], kind="stable")]


def grouped(x: np.ndarray, labels: np.ndarray, ratio: float) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    picked = []
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        k = max(1, int(ratio * len(rows)))
        picked.append(rows[argpartition(x[rows], k)])
    return np.concatenate(picked)


def inputs(n: int, n_odd: int) -> dict[str, np.ndarray]:
    """Losses as they come, and those that selection by a threshold could trip over."""
    rng = np.random.default_rng(0)
    usual = rng.exponential(0.3, n).astype(np.float32)
    n, x = n_odd, rng.exponential(0.3, n_odd).astype(np.float32)
    nan = np.float32(np.nan)
    return {
        "exponential": usual,
        "constant": np.full(n, 1.5, np.float32),
        "half zeros": np.where(rng.random(n) < 0.5, np.float32(0), x),
        "two values": (x > 0.3).astype(np.float32),
        "ascending": np.sort(x),
        "descending": np.sort(x)[::-1].copy(),
        "1 % NaN": np.where(rng.random(n) < 0.01, nan, x),
        "95 % NaN": np.where(rng.random(n) < 0.95, nan, x),
        "subnormal": x * np.float32(1e-39),
        "bfloat16 values": (x.view(np.uint32) & 0xFFFF0000).view(np.float32),
    }


class Table:
    """Rows as they are measured, printed at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rows: list[dict[str, Any]] = []
        print(
            "| goal | job | than | turns | theirs ms | ours ms | ratio | wanted | met |\n" + "|---" * 9 + "|"
        )

    def add(self, goal: str, job: str, ours: Case, others: dict[str, tuple[Case, float | None]]) -> None:
        times = measure({"ours": ours, **{name: case for name, (case, _) in others.items()}}, self.seconds)
        middle = statistics.median(times["ours"])
        for name, (_, wanted) in others.items():
            self.note(
                goal, job, name, times[name], times["ours"], statistics.median(times[name]) / middle, wanted
            )

    def note(
        self,
        goal: str,
        job: str,
        than: str,
        theirs: list[float],
        ours: list[float],
        ratio: float,
        wanted: float,
    ) -> None:
        # without a goal a row shows what there is, and whether it is a loss
        met = ratio >= (1 if wanted is None else wanted)
        row = {"goal": goal, "job": job, "than": than, "theirs_ms": theirs, "ours_ms": ours, "ratio": ratio}
        self.rows.append({**row, "wanted": wanted, "met": met})
        middles = [statistics.median(times) for times in (theirs, ours)]
        verdict = ("" if met else "**slower**") if wanted is None else "yes" if met else "**no**"
        print(
            f"| {goal} | {job} | {than} | {len(theirs)} | {middles[0]:.2f} | {middles[1]:.2f} | {ratio:.2f} | "
            f"{'' if wanted is None else f'{wanted:.2f}'} | {verdict} |",
            flush=True,
        )


def statistics_of_rows(table: Table, rows: int, columns: int) -> None:
    import numba
    import numkong
    import simsimd

    g = torch.Generator().manual_seed(0)
    p = torch.randn(rows, columns, generator=g) * 0.05
    f = p + torch.randn(rows, columns, generator=g) * 1e-3
    arrays = p.numpy(), f.numpy()

    @numba.njit(fastmath=True)  # type: ignore[untyped-decorator]
    def fused(p: np.ndarray, f: np.ndarray) -> np.ndarray:
        found = np.empty((len(p), 5), np.float32)
        for row in range(len(p)):
            squares = dots = references = sizes = largest = np.float32(0)
            for column in range(p.shape[1]):
                e = f[row, column] - p[row, column]
                squares += e * e
                dots += e * p[row, column]
                references += p[row, column] * p[row, column]
                sizes += abs(e)
                largest = max(largest, abs(e))
            found[row] = squares, dots, references, sizes, largest
        return found

    def ours(p: torch.Tensor, f: torch.Tensor) -> Any:
        return row_stats(p, f, columns=True, backend="native")

    np.testing.assert_allclose(ours(p, f).delta_squared, fused(*arrays)[:, 0], rtol=1e-4)
    job = f"statistics, {rows} x {columns} float32"
    table.add(
        "R1",
        job,
        lambda: ours(p, f),
        {
            "numpy": (lambda: by_numpy(*arrays), 10),
            "numpy, blocked": (lambda: blocked(by_numpy_einsum, np.concatenate)(*arrays), 3.5),
            "torch": (lambda: by_torch(p, f), 20),
            "torch, blocked": (lambda: blocked(by_torch, torch.cat)(p, f), 5),
            "numba, 5 of 9 sums": (lambda: fused(*arrays), None),
        },
    )
    cosines = {
        "simsimd, cosine alone": (lambda: simsimd.cosine(*arrays), 1 / 1.35),
        "numkong, angle alone": (lambda: numkong.angular(*arrays), 1 / 1.35),
    }
    table.add("R2", job, lambda: ours(p, f), cosines)
    read = {"numpy.min of both": (lambda: (arrays[0].min(), arrays[1].min()), 0.8)}
    table.add("R4", job, lambda: ours(p, f), read)
    halves = p.bfloat16(), f.bfloat16()
    table.add(
        "R3",
        job.replace("float32", "bfloat16"),
        lambda: ours(*halves),
        {
            "torch": (lambda: by_torch(*halves), 25),
            "torch, blocked": (lambda: blocked(by_torch, torch.cat)(*halves), 10),
        },
    )


def lowest(table: Table, values: dict[str, np.ndarray]) -> None:
    import pandas as pd
    import polars as pl

    for name, x in values.items():
        n = len(x)
        order = np.argsort(x, kind="stable")
        series = pd.Series(x)
        for share, wanted in ((0.001, 7.0), (0.01, 3.0), (0.1, 1.5)):
            k = int(share * n)
            np.testing.assert_array_equal(_native.bottom_k(x, k), order[:k])
            goal, least = ("R5", wanted) if name == "exponential" else ("R7", 1.0)
            others: dict[str, tuple[Case, float | None]] = {
                "numpy argpartition + sort": (lambda x=x, k=k: argpartition(x, k), least)
            }
            if goal == "R5":
                others["numpy argsort(stable)"] = (lambda x=x, k=k: np.argsort(x, kind="stable")[:k], None)
                others["pandas nsmallest"] = (lambda s=series, k=k: s.nsmallest(k), None)
            job = f"lowest {100 * share:g} % of {n:.0e}, {name}"
            table.add(goal, job, lambda x=x, k=k: _native.bottom_k(x, k), others)
    x = values["exponential"]
    k = len(x) // 100
    frame, tensor = pl.DataFrame({"x": x}).with_row_index(), torch.from_numpy(x)
    table.add(
        "R6",
        f"lowest 1 % of {len(x):.0e}",
        lambda: _native.bottom_k(x, k),
        {
            "torch.topk": (lambda: torch.topk(tensor, k, largest=False), 10),
            "polars bottom_k of rows": (lambda: frame.bottom_k(k, by="x"), 10),
            "polars bottom_k, values alone": (lambda: frame["x"].bottom_k(k), None),
        },
    )
    halves = tensor.bfloat16()
    bits, singles = halves.view(torch.int16).numpy().view(np.uint16), halves.float().numpy()
    np.testing.assert_array_equal(
        _native.bottom_k(bits, k, dtype="bfloat16"), np.argsort(singles, kind="stable")[:k]
    )
    table.add(
        "-",
        f"lowest 1 % of {len(x):.0e} bfloat16",
        lambda: _native.bottom_k(bits, k, dtype="bfloat16"),
        {
            "widened first": (lambda: _native.bottom_k(halves.float().numpy(), k), None),
            "torch.topk": (lambda: torch.topk(halves, k, largest=False), None),
            "numpy argpartition + sort, widened": (lambda: argpartition(halves.float().numpy(), k), None),
        },
    )


def sorts(table: Table, values: dict[str, np.ndarray]) -> None:
    import polars as pl

    for name, x in values.items():
        np.testing.assert_array_equal(_native.argsort(x), np.argsort(x, kind="stable"))
        usual = name == "exponential"
        series, tensor = pl.Series(x), torch.from_numpy(x)
        others: dict[str, tuple[Case, float | None]] = {
            "numpy argsort": (lambda x=x: np.argsort(x), 3.0 if usual else None),
            "numpy argsort(stable)": (lambda x=x: np.argsort(x, kind="stable"), None),
            "polars arg_sort": (lambda series=series: series.arg_sort(), 2.5 if usual else None),
        }
        if usual:
            others["torch.argsort(stable)"] = (partial(torch.argsort, tensor, stable=True), None)
        job = f"argsort of {len(x):.0e}, {name}"
        table.add("R8" if usual else "-", job, lambda x=x: _native.argsort(x), others)


def classes(table: Table, values: np.ndarray, n_odd: int) -> None:
    import polars as pl

    rng = np.random.default_rng(1)
    for n_classes, kind in ((100, "even"), (1000, "even"), (1000, "Zipf")):
        x = values if n_classes == 100 else values[:n_odd]
        labels = rng.integers(0, n_classes, len(x)) if kind == "even" else rng.zipf(1.3, len(x)) - 1
        labels = np.minimum(labels, n_classes - 1)
        ours = partial(_native.bottom_k_per_class, x, labels, 0.01, n_classes)
        np.testing.assert_array_equal(x[ours()[0]], x[grouped(x, labels, 0.01)])
        frame = pl.DataFrame({"x": x, "label": labels}).with_row_index()
        share = (pl.len().over("label") * 0.01).floor().clip(lower_bound=1)
        by_rank = pl.col("x").rank("ordinal").over("label") <= share
        wanted = 8.0 if (n_classes, kind) == (100, "even") else None
        others: dict[str, tuple[Case, float | None]] = {
            "numpy, grouped": (partial(grouped, x, labels, 0.01), wanted)
        }
        if wanted:
            others["polars, rank over label"] = (partial(frame.filter, by_rank), None)
        table.add(
            "R9" if wanted else "-", f"lowest 1 % of {n_classes} classes, {kind}, {len(x):.0e}", ours, others
        )


# in a process of its own: in this one the allocator has memory left over that would be used first
_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from asepsis import _native
def peak():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
n = int(sys.argv[1])
x = np.random.default_rng(2).random(n, dtype=np.float32)
_native.bottom_k(x[:1000], 1)
Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
before = peak()
picked = _native.bottom_k(x, n // 1000)
print((peak() - before) / 1024)
"""


def memory(n: int) -> float:
    """MiB that the lowest 0.1 % of n values take beyond the values, the result among them."""
    command = [sys.executable, "-c", _MEMORY, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def huge(table: Table, n: int) -> None:
    x = np.random.default_rng(2).random(n, dtype=np.float32)
    k = n // 1000
    times = measure({"ours": lambda: _native.bottom_k(x, k), "min": x.min}, table.seconds)
    middles = {name: statistics.median(found) for name, found in times.items()}
    ratio = middles["min"] / middles["ours"]
    job = f"lowest 0.1 % of {n:.0e}"
    table.note("R10", job, "x.min()", times["min"], times["ours"], ratio, 1 / 2.5)
    extra = memory(n)
    table.rows.append(
        {"goal": "R10", "job": f"{job}, memory", "peak_mib": extra, "wanted_mib": 4, "met": extra <= 4}
    )
    print(f"\nR10, memory beyond the array, the result among it: {extra:.1f} MiB (wanted: at most 4)")


def builds(table: Table, other: Path, x: np.ndarray, rows: int, columns: int) -> None:
    spec = importlib.util.spec_from_file_location("other._native", other)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{other} is no extension module")
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    p, f = (torch.randn(rows, columns).view(torch.uint8).numpy() for _ in range(2))
    dtypes: Any = {"reference_dtype": "float32", "tuned_dtype": "float32"}
    labels = np.random.default_rng(1).integers(0, 100, len(x))
    for job, work in (
        ("lowest 1 %", lambda module: module.bottom_k(x, len(x) // 100)),
        ("argsort", lambda module: module.argsort(x)),
        ("lowest 1 % of 100 classes", lambda module: module.bottom_k_per_class(x, labels, 0.01, 100)),
        ("statistics", lambda module: module.row_stats(p, f, columns=True, **dtypes)),
    ):
        this, that = (lambda work=work: work(_native)), (lambda work=work: work(native))
        table.add("R11", job, this, {"built for this processor": (that, 0.95)})


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--values", type=int, default=10_000_000)
    parser.add_argument("--odd-values", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=32_000)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--huge", type=int, default=100_000_000)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all by default")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    # one thread each: the machine is shared, and times on all cores would measure the neighbors
    os.environ.update(dict.fromkeys(("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS"), "1"))
    torch.set_num_threads(1)
    names = ("numpy", "torch", "polars", "pandas", "numba", "simsimd", "numkong")
    versions = {name: importlib.metadata.version(name) for name in names}
    print("$ python " + " ".join(sys.argv))
    print(f"{processor()}, one thread; " + ", ".join(f"{name} {v}" for name, v in versions.items()) + "\n")
    table = Table(args.seconds)
    values = inputs(args.values, args.odd_values)
    if "statistics" in args.parts:
        statistics_of_rows(table, args.rows, args.columns)
    if "lowest" in args.parts:
        lowest(table, values)
    if "sorts" in args.parts:
        sorts(table, values)
    if "classes" in args.parts:
        classes(table, values["exponential"], args.odd_values)
    if "ledger" in args.parts:
        ledger(table, args.values)
    if args.baseline:
        builds(table, args.baseline, values["exponential"], args.rows, args.columns)
    del values
    if args.huge and "huge" in args.parts:
        huge(table, args.huge)
    if args.output:
        found = {"settings": sys.argv[1:], "processor": processor(), "versions": versions, "rows": table.rows}
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
