"""PSIM's stop rule: which state is taken, and when there is none to take."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis.defenses._psim_config import PsimConfig
from asepsis.defenses._psim_scores import Question
from asepsis.defenses.psim import _Watch
from asepsis.errors import DefenseInert
from asepsis.testing import tiny_rows


def watch_of(*confidences, **fields):
    """A watch that is shown these clean confidences, and what it says to each."""
    config = PsimConfig(**fields)
    shown = iter(confidences)

    class Shown(Question):
        def ask(self, network, rows, *, name=""):
            p = next(shown)
            return np.log(np.float32([[p, 1 - p]] * 10))
            yield

    rows = tiny_rows(10, 0)
    watch = _Watch(Shown(config, "classes", 2), rows, None, before=np.full(10, 0.95))

    def verdict(step):
        try:
            next(watch.look(step))
        except StopIteration as stop:
            return stop.value

    return watch, [verdict(step + 1) for step in range(len(confidences))]


def test_the_first_usable_state_is_taken():
    watch, verdicts = watch_of(0.9, 0.8, 0.69)
    assert verdicts == ["keep", "keep", "take"] and watch.settled()["end"] == "usable"
    assert watch.settled()["usable"]


def test_a_module_that_forgot_everything_between_two_looks_cannot_be_used():
    with pytest.raises(DefenseInert, match=r"between step 2, when .* lower learning_rate or check_every"):
        watch_of(0.9, 0.8, 0.505)
    with pytest.raises(DefenseInert, match="fell to chance between the start and step 1"):
        watch_of(0.505)


def test_without_a_stop_rule_the_module_says_whether_it_met_the_bar(caplog):
    assert watch_of(0.9, 0.69, stop="never")[0].settled()["usable"] and not caplog.text
    assert not watch_of(0.69, 0.9, stop="never")[0].settled()["usable"]
    assert "still sure of clean rows after 2 steps (mean 0.90" in caplog.text
    assert not watch_of(0.9, 0.505, stop="never")[0].settled()["usable"]
    assert "has forgotten everything after 2 steps (mean 0.51" in caplog.text or "(mean 0.50" in caplog.text


def test_the_bar_is_the_settings():
    assert watch_of(0.69)[1] == ["take"] and watch_of(0.69, unsure=0.6)[1] == ["keep"]
