"""The cases of ``native.py`` under pytest-benchmark, for its tables, its files and its comparison of two runs.

    pytest benches/test_native.py --benchmark-json before.json
    pytest benches/test_native.py --benchmark-compare before.json

Wall time, one case after the other, ``ASEPSIS_BENCH_VALUES`` losses (1,000,000) and a hundredth as many rows: for a
change of ours against the version before. Ratios to other libraries, with goals, are those of ``native.py``, whose
competitors take turns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")
for name in ("numba", "numkong", "pandas", "polars", "simsimd"):
    pytest.importorskip(name)
sys.path.insert(0, str(Path(__file__).parent))

import native  # noqa: E402

VALUES = int(os.environ.get("ASEPSIS_BENCH_VALUES", "1000000"))


class Cases(native.Table):
    """Keeps what a table would measure."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Callable[[], Any]] = {}

    def add(self, goal: str, job: str, ours: native.Case, others: dict[str, Any]) -> None:
        self.found[job, "ours"] = ours
        self.found |= {(job, name): case for name, (case, _) in others.items()}


def cases() -> Iterator[Any]:
    native.torch.set_num_threads(1)
    found, values = Cases(), native.inputs(VALUES, VALUES // 10)
    native.statistics_of_rows(found, VALUES // 100, 768)
    native.lowest(found, values)
    native.sorts(found, values)
    native.classes(found, values["exponential"], VALUES // 10)
    native.ledger(found, VALUES)
    for (job, name), case in found.found.items():
        yield pytest.param(case, id=f"{job}: {name}", marks=pytest.mark.benchmark(group=job))


@pytest.mark.parametrize("case", list(cases()))
def test_time(benchmark: Any, case: native.Case) -> None:
    benchmark(case)
