"""The examples run as they are handed out, offline, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "classifier": ("undefended: accuracy", "abl: accuracy", "verdict:"),
    "sft": ("musclelora: refuses", "written to sft-adapter"),
    "audit": ("folder: intact", "scan: ", "epur reset: ['cf'", "scan of the repaired model:", "guard: flags"),
}


def test_every_example_is_run_by_a_test_and_fits_on_a_screen_or_two() -> None:
    files = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(files) == set(SAYS)
    assert not {name: lines for name, lines in files.items() if not 40 <= lines <= 80}


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_and_says_what_it_found(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--small"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [words for words in SAYS[name] if words not in done.stdout], done.stdout
