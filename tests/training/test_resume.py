"""Runs that are broken off and resumed, in one process; ``test_resume_killed.py`` kills them."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import asepsis
from asepsis.core.phases import Acted, Outcome, Score, Touch, Train
from asepsis.core.state_file import read_state, states
from asepsis.errors import BackendError, CheckpointError, ConfigError
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training import run_script
from asepsis.training.resume import Journal, discard, rng_state, set_rng_state

_spec = importlib.util.spec_from_file_location("resumed_runs", Path(__file__).with_name("runs.py"))
runs = importlib.util.module_from_spec(_spec)
sys.modules["resumed_runs"] = runs
_spec.loader.exec_module(runs)


class BrokenOff(Exception):
    pass


def broken_off_at(call):
    """A progress callback that ends the run at its n-th call, as an interrupt would."""
    calls = iter(range(1, call))

    def progress(*_):
        if next(calls, None) is None:
            raise BrokenOff

    return progress


def calls_of(case, **options):
    made = []
    done = runs.run(case, progress=lambda *_: made.append(1), **options)
    return len(made), runs.result(done)


def broken_off(case, folder, call, *, every=3, **options):
    with pytest.raises(BrokenOff):
        runs.run(case, progress=broken_off_at(call), checkpoint_dir=folder, checkpoint_every=every, **options)


@pytest.mark.parametrize("case", runs.CASES)
def test_a_run_broken_off_at_any_moment_and_resumed_equals_one_that_was_not(case, tmp_path):
    calls, wanted = calls_of(case)
    moments = random.Random(case).sample(range(1, calls + 1), 2 if "chooses" not in case else 1)
    for moment in moments:
        folder = tmp_path / str(moment)
        broken_off(case, folder, moment)
        done = runs.run(case, checkpoint_dir=folder, checkpoint_every=3, resume=True)
        runs.assert_equal(runs.result(done), wanted)


def test_a_run_resumed_again_and_again_equals_one_that_was_not_broken_off(tmp_path):
    calls, wanted = calls_of("abl")
    for _ in range(calls):
        try:
            done = runs.run(
                "abl", progress=broken_off_at(9), checkpoint_dir=tmp_path, checkpoint_every=2, resume=True
            )
        except BrokenOff:
            continue
        break
    runs.assert_equal(runs.result(done), wanted)


@pytest.mark.parametrize("case", ["none", "abl", "btu", "musclelora"])
def test_a_run_of_the_trainer_resumed_equals_one_that_was_not_broken_off(case, tmp_path):
    args = runs.arguments(tmp_path / "trainer")
    calls, wanted = calls_of(case, args=args)
    broken_off(case, tmp_path / "c", random.Random(case).randint(2, calls), every=1, args=args)
    done = runs.run(case, args=args, checkpoint_dir=tmp_path / "c", checkpoint_every=1, resume=True)
    runs.assert_equal(runs.result(done), wanted)


def test_a_training_is_taken_up_in_its_middle_by_both_drivers(tmp_path, caplog):
    for name, options in (("loop", {}), ("trainer", {"args": runs.arguments(tmp_path / "trainer")})):
        folder = tmp_path / name
        broken_off("none", folder, 6, every=1, **options)
        running = read_state(states(folder)[0])["running"]
        assert running["watch"]["steps"] == 5
        assert any(state["exp_avg"].any() for state in running["optimizer"]["parameters"])
        with caplog.at_level(logging.INFO, "asepsis"):
            runs.run("none", checkpoint_dir=folder, resume=True, **options)
        assert "train goes on after step 5" in caplog.text
        caplog.clear()


def test_stages_kept_before_the_break_are_there_after_it(tmp_path):
    calls, _ = calls_of("btu")
    whole = runs.run("btu", keep_stages=True)
    folder = tmp_path / "checkpoints"
    broken_off("btu", folder, calls - 1, every=1, keep_stages=True)
    resumed = runs.run("btu", checkpoint_dir=folder, resume=True, keep_stages=True)
    assert set(resumed.stages) == {"before edit", "after edit", "after tuning"}
    for name, weights in whole.stages.items():
        runs.assert_equal(resumed.stages[name], weights)


TEARS = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "emptied": lambda path: path.write_bytes(b""),
    "a flipped byte": lambda path: path.write_bytes(
        path.read_bytes()[:-9] + b"\x55" + path.read_bytes()[-8:]
    ),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_said_aloud_and_the_one_before_it_used(tear, tmp_path, caplog):
    _, wanted = calls_of("none")
    broken_off("none", tmp_path, 12)
    newest, before = states(tmp_path)
    TEARS[tear](newest)
    done = runs.run("none", checkpoint_dir=tmp_path, checkpoint_every=3, resume=True)
    runs.assert_equal(runs.result(done), wanted)
    if tear != "deleted":  # a file that is gone left nothing to speak of
        assert f"{newest} is not as it was written" in caplog.text
    assert len(states(tmp_path)) == 2, "the torn one is gone"
    assert before not in states(tmp_path)


def test_torn_checkpoints_alone_are_refused_and_left_where_they_are(tmp_path):
    broken_off("none", tmp_path, 12)
    for path in states(tmp_path):
        TEARS["cut short"](path)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        runs.run("none", checkpoint_dir=tmp_path, resume=True)
    assert len(states(tmp_path)) == 2


def test_what_was_being_written_when_the_run_was_killed_is_cleared_away(tmp_path):
    broken_off("none", tmp_path, 12)
    (tmp_path / ".state-00000099.part").write_bytes(b"half")
    runs.run("none", checkpoint_dir=tmp_path, checkpoint_every=1, resume=True)
    assert not list(tmp_path.glob(".*"))
    discard(tmp_path)
    assert not tmp_path.exists()


def other_rows(rows):
    return dataclasses.replace(rows, texts=[*rows.texts[:-1], "word1"])


OTHERS = {
    "data": lambda: {"data": other_rows(runs.poisoned())},
    "clean_reference": lambda: {"clean_reference": tiny_rows(16, 6)},
    "model.weights": lambda: {"seed": 2},
    "defense.config.rank": lambda: {"defense": dataclasses.replace(runs.CASES["musclelora"][0], rank=3)},
    "settings.learning_rate": lambda: {"settings": dataclasses.replace(runs.SETTINGS, learning_rate=1e-3)},
    "settings.keep_stages": lambda: {"keep_stages": True},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_resume_with_anything_else_is_refused_and_says_what_it_is(what, tmp_path):
    config, given, make, rows = runs.CASES["musclelora"]
    broken_off("musclelora", tmp_path, 8)
    options = {"data": rows(), "defense": config, "settings": runs.SETTINGS, **given} | OTHERS[what]()
    model, tokenizer = make(options.pop("seed", 1))
    before = {path: path.read_bytes() for path in states(tmp_path)}
    with pytest.raises(CheckpointError, match=rf"another run: {what} was .* and is"):
        asepsis.defend(model, processing_class=tokenizer, checkpoint_dir=tmp_path, resume=True, **options)
    assert {path: path.read_bytes() for path in states(tmp_path)} == before


def test_checkpoints_of_an_earlier_run_are_not_overwritten_unasked(tmp_path):
    broken_off("none", tmp_path, 12)
    with pytest.raises(CheckpointError, match="earlier run: go on there with resume=True"):
        runs.run("none", checkpoint_dir=tmp_path)


def test_a_resume_without_a_checkpoint_begins_anew_and_says_so(tmp_path, caplog):
    _, wanted = calls_of("none")
    done = runs.run("none", checkpoint_dir=tmp_path / "absent", resume=True)
    assert "begins at its start" in caplog.text
    runs.assert_equal(runs.result(done), wanted)


def test_a_resume_that_does_not_say_where_is_refused():
    with pytest.raises(ConfigError, match="needs checkpoint_dir"):
        runs.run("none", resume=True)


def test_checkpoints_need_a_distance(tmp_path):
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        runs.run("none", checkpoint_dir=tmp_path, checkpoint_every=0)


def test_fp16_is_refused_because_its_scale_would_be_lost(tmp_path):
    args = runs.arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(BackendError, match="fp16"):
        runs.run("none", args=args, checkpoint_dir=tmp_path / "c")


def drive(script, folder, *, resume=False, progress=None, every=1):
    model, tokenizer = tiny_classifier(1)
    journal = Journal(folder, every=every, resume=resume)
    options = {} if progress is None else {"progress": progress}
    return run_script(
        model,
        runs.poisoned(),
        script,
        defense={"name": "own", "config": {}},
        processing_class=tokenizer,
        settings=runs.SETTINGS,
        journal=journal,
        **options,
    )


def test_a_script_that_asks_for_something_else_than_before_is_refused(tmp_path):
    def script(rows):
        def steps(model, data):
            yield Score(name="first", rows=rows)
            yield Train(name="second")
            return Outcome(acted=Acted(steps=1))

        return steps

    ids = runs.poisoned().sample_ids
    with pytest.raises(BrokenOff):
        drive(script(ids[:9]), tmp_path, progress=broken_off_at(5))
    with pytest.raises(CheckpointError, match=r"request 0 of the run was .*first"):
        drive(script(ids[:8]), tmp_path, resume=True)


def test_what_a_script_does_to_the_weights_is_done_once_and_its_answer_kept(tmp_path):
    done = []

    def script(model, data):
        def halve():
            done.append("halved")
            with torch.no_grad():
                model.classifier.weight.mul_(0.5)
                model.bert.embeddings.LayerNorm.weight.zero_()
            return {"norm": float(model.classifier.weight.detach().norm()), "drawn": torch.rand(2).numpy()}

        model.bert.requires_grad_(False)
        yield Train(name="first", steps=2)
        found = yield Touch(name="halve", do=halve)
        drawn = torch.rand(3)
        yield Train(name="second", steps=3)
        report = {"norm": found["norm"], "drawn": [*found["drawn"].tolist(), *drawn.tolist()]}
        return Outcome(acted=Acted(steps=5), report=report | {"frozen": float(torch.rand(1))})

    whole = drive(script, tmp_path / "whole")
    assert done == ["halved"]
    with pytest.raises(BrokenOff):
        drive(script, tmp_path / "broken", progress=broken_off_at(4))
    assert done == ["halved"] * 2
    resumed = drive(script, tmp_path / "broken", resume=True)
    assert done == ["halved"] * 2, "a third time would halve again"
    runs.assert_equal(runs.result(resumed), runs.result(whole))
    assert not resumed.model.bert.embeddings.LayerNorm.weight.any(), "a frozen tensor that was written to"


def test_a_training_of_the_scripts_own_network_is_refused(tmp_path):
    def script(model, data):
        yield Train(name="module", network=nn.Linear(2, 2), steps=1)
        return Outcome(acted=Acted(steps=1))

    with pytest.raises(CheckpointError, match="module: a training of the script's own network"):
        drive(script, tmp_path)


def test_all_generators_are_put_back():
    def draw():
        numpy = np.random.mtrand._rand  # the global generator
        return [torch.rand(2).tolist(), numpy.rand(), numpy.randn(), random.random(), random.gauss(0, 1)]

    draw()  # the Gaussians come in pairs, so half of one waits
    before = rng_state()
    drawn = draw()
    set_rng_state(before)
    assert draw() == drawn


def test_other_versions_of_the_packages_are_warned_of(tmp_path, monkeypatch, caplog):
    broken_off("none", tmp_path, 12)
    monkeypatch.setattr("asepsis.training.versions", lambda: {"torch": "0.1"})
    runs.run("none", checkpoint_dir=tmp_path, resume=True)
    assert "results may round otherwise" in caplog.text
