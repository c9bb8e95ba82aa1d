"""The main job, from the command a stranger types: the backdoor is learned undefended and not under ABL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(2400)
def test_the_demo_keeps_what_the_readme_promises(tmp_path: Path) -> None:
    threads = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    command = [sys.executable, "-m", "asepsis.cli", "demo", "--output", str(tmp_path)]
    done = subprocess.run(command, env=threads, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "demo.json").read_text())
    rows = {row["defense"]: row for row in content["rows"]}
    assert list(rows) == ["none", "clean-only", "abl"]

    def value(defense: str, name: str) -> float:
        return float(rows[defense][name]["value"])

    floor = value("clean-only", "attack_success_rate")
    assert value("none", "attack_success_rate") >= 0.95
    assert value("abl", "attack_success_rate") <= floor + 0.05
    assert value("abl", "clean_accuracy") >= value("clean-only", "clean_accuracy") - 0.03
    assert content["isolated_precision"] >= 0.95
    page = (tmp_path / "report.html").read_text()
    assert "clean-only" in page and "<script" not in page
