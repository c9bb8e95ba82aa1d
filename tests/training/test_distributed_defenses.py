"""Whole defenses in two processes against one. Run as a script, this file is the worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from together import assert_same, defend, end, in_two_processes, save

from asepsis.testing import tiny_classifier

NAMES = ("abl", "musclelora")


def train(name, folder, *, accumulation):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    return defend(name, *tiny_classifier(1, dropout=0.0), folder, use_cpu=True, **sizes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where two processes have been through the defenses."""
    folder = tmp_path_factory.mktemp("distributed")
    in_two_processes(__file__, folder, timeout=500)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_defense_in_two_processes_does_what_it_does_in_one_with_twice_the_batch(name, place):
    run = train(name, place, accumulation=2)
    start = dict(tiny_classifier(1, dropout=0.0)[0].named_parameters())
    assert_same(run, place, name, start)
    assert name != "abl" or len(run.outcome.flagged) == 4


def work(folder):
    for name in NAMES:
        save(train(name, folder, accumulation=1), folder, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
    end()
