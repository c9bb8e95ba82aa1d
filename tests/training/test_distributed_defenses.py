"""Whole defenses in two processes against one. Run as a script, this file is the worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

import asepsis
from asepsis.testing import tiny_classifier, tiny_rows

DEFENSES = {
    "abl": (
        asepsis.AblConfig(snapshots=(2, 4), grow_steps=3, drop_ratio=0.1, unlearn="always", gamma=0.6938),
        {},
    ),
    "musclelora": (
        asepsis.MuscleloraConfig(scales=(1, 2, 3), rank=2, init="reference", epochs=2),
        {"clean_reference": tiny_rows(16, 5)},
    ),
}


def train(name, folder, *, accumulation):
    """Defend a tiny model without dropout, whose random numbers go by process and micro-batch."""
    config, given = DEFENSES[name]
    model, tokenizer = tiny_classifier(1, dropout=0.0)
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=16,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=5e-2,
        optim="sgd",  # AdamW's first step has the size of the rate whatever the gradient's
        seed=3,
    )
    run = asepsis.defend(
        model, tiny_rows(48, 0), defense=config, processing_class=tokenizer, args=args, **given
    )
    weights = {k: v.detach().clone().contiguous() for k, v in run.model.named_parameters()}
    found = {"flagged": run.outcome.flagged, "isolated": run.outcome.isolated}
    counts = {k: torch.from_numpy(v.copy()) for k, v in found.items()}
    return weights | counts | {"steps": torch.tensor(run.outcome.acted.steps)}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_in_two_processes_does_what_it_does_in_one_with_twice_the_batch(name, tmp_path):
    worker = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*worker, name, str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = train(name, tmp_path, accumulation=2)
    start = dict(tiny_classifier(1, dropout=0.0)[0].named_parameters())
    moved = [k for k, p in start.items() if k in alone and not torch.equal(alone[k], p)]
    # the branch of the output layer starts at zero
    assert moved or alone["classifier.lora_A"].any()
    assert name != "abl" or len(alone["flagged"]) == 4
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert set(found) == set(alone)
        for key, wanted in alone.items():
            torch.testing.assert_close(
                found[key], wanted, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = train(sys.argv[1], Path(sys.argv[2]), accumulation=1)
    save_file(result, str(Path(sys.argv[2]) / f"{os.environ['RANK']}.safetensors"))
    torch.distributed.destroy_process_group()  # its threads sometimes abort an interpreter that just exits
