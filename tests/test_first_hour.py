"""docs/first-hour.md is what happens: its commands are run in order, and say what the page says they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"
FENCE = re.compile(
    r'^(<!-- run by (\S+) -->\n)?^```(?:python title="([^"]+)"|console)\n(.*?)^```', re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")


def stable(line: str) -> str:
    """Return a line of output without what differs between machines: numbers, and how wide columns are."""
    return " ".join(NUMBER.sub("#", line).split())


def differences(wanted: str, got: str) -> list[str]:
    """Return what is wrong with an output; a line ``...`` stands for any number of lines."""
    lines = [stable(line) for line in got.splitlines() if line.strip()]
    at, anywhere, wrong = 0, False, []
    for line in wanted.splitlines():
        if line.strip() == "...":
            anywhere = True
        elif line.strip():
            places = range(at, len(lines)) if anywhere else range(at, min(at + 1, len(lines)))
            found = [i for i in places if lines[i] == stable(line)]
            if not found:
                return [*wrong, f"wanted {stable(line)!r}, got {lines[at : at + 3]}"]
            at, anywhere = found[0] + 1, False
    return wrong if at == len(lines) or anywhere else [*wrong, f"not on the page: {lines[at:]}"]


def commands(block: str) -> list[tuple[str, str]]:
    """Return each command of a console block with the output the page shows for it."""
    parts = re.split(r"^\$ (.+)\n", block, flags=re.MULTILINE)
    assert not parts[0].strip(), f"output before the first command: {parts[0]}"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_stable_parts_are_the_words_and_not_the_numbers() -> None:
    assert not differences("flagged 96 of 1,000 rows\n", "flagged  97 of 1000 rows\n")
    assert differences("flagged 96 of 1,000 rows\n", "found 96 of 1,000 rows\n")
    assert not differences("a\n...\nz\n", "a\nb\nc\nz\n")
    assert differences("a\nz\n", "a\nb\nz\n")
    assert differences("a\n", "a\nb\n")
    assert differences("a\nb\n", "a\n")
    assert not differences("a\n...\n", "a\nb\n")


def test_commands_are_read_with_their_outputs() -> None:
    assert commands("$ one\nx\ny\n$ two\n") == [("one", "x\ny\n"), ("two", "")]
    with pytest.raises(AssertionError, match="before the first"):
        commands("x\n$ one\n")


def test_what_the_page_leaves_to_other_tests_is_tested_there() -> None:
    left = [found for found in FENCE.finditer(PAGE.read_text(encoding="utf-8")) if found[1]]
    assert left
    for found in left:
        assert (PAGE.parents[1] / found[2]).is_file()


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(1800)
def test_the_first_hour_goes_as_the_page_says(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in (("asepsis", "-m asepsis.cli"), ("python", "")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    place = tmp_path / "here"
    place.mkdir()
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    run = 0
    for found in FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        _, elsewhere, title, block = found.groups()
        if elsewhere:
            continue
        if title:
            (place / title).write_text(block, encoding="utf-8")
            continue
        for command, wanted in commands(block):
            done = subprocess.run(
                command, shell=True, cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode in (0, 1), f"{command}\n{done.stderr}"
            wrong = differences(wanted, done.stdout)
            assert not wrong, f"{command}\n{wrong}\n{done.stderr[-2000:]}"
            run += 1
    assert run >= 8
