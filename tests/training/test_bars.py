"""Progress bars inside a Trainer: the bar names the running phase, passes over all rows have bars, silence stays silent."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer
from transformers.trainer_callback import ProgressCallback

import asepsis
from asepsis.training.bars import PassBars

_spec = importlib.util.spec_from_file_location("bars_runs", Path(__file__).with_name("runs.py"))
runs = importlib.util.module_from_spec(_spec)
sys.modules["bars_runs"] = runs
_spec.loader.exec_module(runs)


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is made, in place of one on the terminal."""
    made = []

    class Bar:
        def __init__(self, *, total=None, desc="", **_):
            self.total, self.names, self.n, self.open = total, [desc], 0, True
            made.append(self)

        def update(self, more):
            assert self.open
            self.n += more

        def set_description(self, name):
            self.names.append(name)

        def write(self, line):
            pass

        def close(self):
            self.open = False

    monkeypatch.setattr("transformers.trainer_callback.tqdm", Bar)
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    return made


def arguments(folder, *, quiet):
    args = runs.arguments(folder)
    args.save_strategy, args.disable_tqdm = "no", quiet
    return args


def trainer_for(folder, *, quiet):
    config, _, make, rows = runs.CASES["abl"]
    model, tokenizer = make(1)
    data = rows()
    encoded = tokenizer(list(data.texts), truncation=True, max_length=32)
    return asepsis.defended(Trainer, config)(
        model,
        arguments(folder, quiet=quiet),
        DataCollatorWithPadding(tokenizer),
        Dataset.from_dict({**encoded, "label": data.labels.tolist()}),
        processing_class=tokenizer,
    )


def test_one_bar_names_phase_after_phase_and_passes_over_rows_have_their_own(bars, tmp_path):
    trainer = trainer_for(tmp_path, quiet=False)
    trainer.train()
    training, *passes = [bar for bar in bars if len(bar.names) > 1] + [b for b in bars if len(b.names) == 1]
    phases = training.names[1:]
    assert phases[0] == "isolation" and len(set(phases)) >= 3
    assert training.n == trainer.state.global_step <= training.total  # unlearning may end early
    named = [bar.names[0] for bar in passes]
    assert "losses before training" in named and "isolation: losses after step 2" in named
    assert not set(named) & set(phases), "steps are the training bar's"
    assert all(bar.n == bar.total and not bar.open for bar in passes)


def test_a_silent_trainer_shows_no_bar(bars, tmp_path):
    trainer_for(tmp_path, quiet=True).train()
    assert bars == []


def test_the_bars_of_defend_with_arguments_carry_the_phases_names(bars, tmp_path):
    runs.run("abl", args=arguments(tmp_path, quiet=False))
    named = [bar.names[-1] for bar in bars]
    assert named[0] == "isolation" and len(set(named)) >= 3
    assert all(bar.n <= bar.total and not bar.open for bar in bars)


def stand_in(*, first=True, callbacks=None):
    handler = SimpleNamespace(callbacks=[ProgressCallback()] if callbacks is None else callbacks)
    return SimpleNamespace(phase=None, callback_handler=handler, is_world_process_zero=lambda: first)


def test_only_the_first_process_shows_bars(bars):
    PassBars(stand_in(first=False))("scoring", 1, 2)
    PassBars(stand_in(callbacks=[]))("scoring", 1, 2)
    assert bars == []
    PassBars(stand_in())("scoring", 1, 2)
    assert len(bars) == 1


def test_a_pass_that_ended_early_leaves_no_bar_open(bars):
    shown = PassBars(stand_in())
    shown("one", 3, 9)
    shown("two", 4, 4)
    shown("three", 1, 2)
    shown.close()
    assert [(bar.names[0], bar.n, bar.total, bar.open) for bar in bars] == [
        ("one", 3, 9, False),
        ("two", 4, 4, False),
        ("three", 1, 2, False),
    ]
