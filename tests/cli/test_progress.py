"""Progress of long work on stderr: bars on a terminal, one line a phase elsewhere, and nothing of other libraries."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from asepsis.cli._progress import shown


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Screen()


def test_a_terminal_shows_the_running_phase_and_how_far_it_is(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen)
    with shown() as progress:
        for done in (1, 20, 40):
            progress("isolation", done, 40)
        progress("contrast in class 1", 5, 20)
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "contrast in class 1" in told and "5/20" in told
    assert "\x1b[" in screen.getvalue(), "a bar is drawn over"
    assert "isolation: 40 in" not in told, "lines are for logs"


def test_elsewhere_every_phase_is_one_line_when_it_is_done(capsys):
    with shown() as progress:
        progress("isolation", 20, 40)
        assert capsys.readouterr().err == ""
        progress("isolation", 40, 40)
        progress("losses", 7, 7)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+ s$", "# s", line) for line in lines] == [
        "asepsis: isolation: 40 in # s",
        "asepsis: losses: 7 in # s",
    ]


def test_our_warnings_are_lines_meanwhile_and_hide_nothing_from_a_terminal(capsys):
    log = logging.getLogger("asepsis")
    before = list(log.handlers)
    with shown():
        log.warning("the model %s", "a\x1b[2Jb")
        log.info("not for the screen")
    told = capsys.readouterr().err
    assert told.startswith("asepsis: the model a") and "\x1b" not in told
    assert "not for the screen" not in told
    assert log.handlers == before
