"""Measure the kernels on this machine's NVIDIA GPU and write the numbers down.

    python -m benches.gpu [BENCH ...] [--seconds 460] [--output benches/results]

Runs every bench of ``benches/gpu/registry.py``, or those named. Each first compares its operation with float64 on the
device; after a wrong result nothing is timed. Exits with 1 when something was wrong or a row failed, 2 when this machine
cannot run it. Needs no network and no installation: see ``benches/gpu/tree.py``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from benches.gpu.registry import BENCHES, Bench
from benches.gpu.tree import ROOT, TreeError, make_importable


def refusal() -> str | None:
    """Why this machine cannot run the benches; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return (
            "no CUDA device: these rows are measured on an NVIDIA GPU and cannot be had otherwise; "
            "benches/README.md lists the benches a CPU can run"
        )
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0, which the kernels need"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; it comes with torch on Linux"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benches.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [bench.name for bench in BENCHES]
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all of them together")
    parser.add_argument("--output", type=Path, default=ROOT / "benches" / "results")
    args = parser.parse_args(arguments)
    unknown = set(args.benches) - set(names)
    if unknown:
        parser.error(f"no bench is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    why_not = refusal()
    if why_not is not None:
        print(f"benches.gpu: {why_not}", file=sys.stderr)
        return 2
    try:
        make_importable()
    except TreeError as problem:
        print(f"benches.gpu: {problem}", file=sys.stderr)
        return 2
    return measure([bench for bench in BENCHES if not args.benches or bench.name in args.benches], args)


def measure(chosen: list[Bench], args: argparse.Namespace) -> int:
    """Run the chosen benches, write one file each, and return the exit code."""
    from benches.gpu import calibration, machine, report, runner, timing

    about = machine.describe()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    share = args.seconds / sum(bench.seconds for bench in chosen)
    wrong = False
    results: dict[str, dict[str, Any]] = {}
    flush = timing.l2_flush()
    for bench in chosen:
        print(f"== {bench.name}: {bench.about}", flush=True)
        module = importlib.import_module(bench.module)
        result = runner.run(
            module,
            clock=timing.CudaClock(),
            flush=flush,
            capture=timing.captured,
            seconds=bench.seconds * share,
        )
        path = machine.result_path(args.output, about, bench.name)
        machine.write(path, {"machine": about, "bench": bench.name, **result})
        print(f"-> {path}", flush=True)
        results[bench.name] = result
        calibrated = calibration.write(results, about, args.output)
        if calibrated is not None:
            print(f"-> {calibrated}", flush=True)
        if result["not_reached"]:
            print(f"not reached: {', '.join(result['not_reached'])}")
        wrong |= runner.failed(result)
    for path in report.write(results, about, args.output / machine.slug(about["device"])):
        print(f"-> {path}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
