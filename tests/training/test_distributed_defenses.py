"""Whole defenses in two processes against one. Run as a script, this file is the worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from together import assert_same, defend, end, in_two_processes, save

import asepsis
from asepsis.errors import BackendError
from asepsis.testing import tiny_classifier

NAMES = ("abl", "musclelora")


def train(name, folder, *, accumulation):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    return defend(name, *tiny_classifier(1, dropout=0.0), folder, use_cpu=True, **sizes)


def weights(run):
    return {f"weights/{k}": v.detach().clone().contiguous() for k, v in run.model.named_parameters()}


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
    alone = weights(run)
    # the branch of the output layer starts at zero
    assert name == "abl" or alone["weights/classifier.lora_A"].any()
    for told in assert_same(run, place, name, start):  # of each process: the saved ones are the first's
        assert {key for key in told if key.startswith("weights/")} == set(alone)
        for key, wanted in alone.items():
            torch.testing.assert_close(
                told[key], wanted, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
            )
    assert name != "abl" or len(run.outcome.flagged) == 4


def work(folder):
    for name in NAMES:
        run = train(name, folder, accumulation=1)
        save(run, folder, name, **weights(run))
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 1:
            run.save_pretrained(folder / name)  # a late one: it must not take the place of the first's


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
    with pytest.raises(BackendError, match="purify works in one process"):
        asepsis.purify("nowhere", base="nowhere")
    with pytest.raises(BackendError, match="pipeline works in one process"):
        asepsis.Pipeline(["abl"]).run("nowhere")
    end()
