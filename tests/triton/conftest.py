"""Kernels without a GPU: what they compute in `interpreted`, what they compile to in `compiled`.

Triton reads TRITON_INTERPRET when a kernel is decorated, so one process does one of the two; `make test` runs both.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
WANTED = {"interpreted": True, "compiled": False}
REASON = {
    True: "kernels are compiled in this process: TRITON_INTERPRET=1 pytest tests/triton/interpreted",
    False: "kernels are interpreted in this process: pytest tests/triton/compiled",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        if HERE not in item.path.parents:
            continue
        wanted = WANTED.get(item.path.relative_to(HERE).parts[0], interpreting)
        if wanted != interpreting:
            item.add_marker(pytest.mark.skip(reason=REASON[wanted]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the compiled kernels use; workers hand it over as properties of their reports."""
    lines = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for key, value in report.user_properties
        if key == "compiled"
    ]
    if lines:
        terminalreporter.section("compiled kernels")
        header = f"{'sm':>2} {'registers':>9} {'shared':>7} {'spills':>6} {'warps':>5}  kernel"
        for line in (header, *sorted(set(lines), key=lambda line: line.split(maxsplit=5)[5])):
            terminalreporter.write_line(line)
