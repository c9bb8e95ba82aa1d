"""Defenses in two processes against one process: what the tests of DDP, FSDP2 and ZeRO-2 share."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

import asepsis
from asepsis.testing import tiny_rows

_REFERENCE = {"clean_reference": tiny_rows(16, 5)}
_MUSCLELORA = {"scales": (1, 2, 3), "rank": 2, "init": "reference"}
#: name: (config, what is given beside)
DEFENSES = {
    "abl": (
        # a level that the losses of the first steps lie on both sides of: the third step's gradient is turned
        asepsis.AblConfig(snapshots=(2, 4), grow_steps=3, drop_ratio=0.1, unlearn="always", gamma=0.6938),
        {},
    ),
    "btu": (asepsis.BtuConfig(score="l2", k=2, order="edit_then_train"), {}),
    "musclelora": (asepsis.MuscleloraConfig(**_MUSCLELORA, epochs=2), _REFERENCE),
    "musclelora in two passes": (
        asepsis.MuscleloraConfig(**_MUSCLELORA, epochs=1, passes="two"),
        _REFERENCE,
    ),
}


def defend(name, model, tokenizer, folder, *, defense=None, **arguments):
    """Defend a tiny model, which should have no dropout: its random numbers go by process and micro-batch."""
    config, given = DEFENSES[name] if defense is None else defense
    args = TrainingArguments(
        output_dir=str(folder / "args"),
        report_to=[],
        disable_tqdm=True,
        per_device_eval_batch_size=16,
        num_train_epochs=2,
        learning_rate=5e-2,
        optim="sgd",  # AdamW's first step has the size of the rate whatever the gradient's
        seed=3,
        save_strategy="no",
        **arguments,
    )
    return asepsis.defend(
        model, tiny_rows(48, 0), defense=config, processing_class=tokenizer, args=args, **given
    )


def in_two_processes(file, folder, *, timeout, **environment):
    """Run a test file as the worker that saves what it finds in a folder."""
    worker = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", file]
    done = subprocess.run(
        [*worker, str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def save(run, folder, name, **more):
    """Save a worker's run: the model once, what was found once a process."""
    run.save_pretrained(folder / name)
    save_file(found(run) | more, str(folder / f"{name} {os.environ['RANK']}.safetensors"))


def found(run):
    parts = {name: getattr(run.outcome, name) for name in ("flagged", "isolated", "edited")}
    numbers = {name: torch.from_numpy(value.copy()) for name, value in parts.items()}
    return numbers | {"steps": torch.tensor(run.outcome.acted.steps)}


def assert_same(run, folder, name, start):
    """Compare a run in one process with what two saved; return what each of them found. ``start`` is before training."""
    alone, together = folder / f"alone {name}", folder / name
    run.save_pretrained(alone)
    assert sorted(p.name for p in together.iterdir()) == sorted(p.name for p in alone.iterdir())
    assert asepsis.verify(together).verdict == "intact"
    weights = "adapter_model.safetensors" if name.startswith("musclelora") else "model.safetensors"
    wanted, got = load_file(alone / weights), load_file(together / weights)
    assert set(wanted) == set(got)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    assert any(bool(v.any()) for k, v in got.items() if k not in start or not torch.equal(v, start[k]))
    told = [load_file(folder / f"{name} {rank}.safetensors") for rank in (0, 1)]
    for rank, key in ((rank, key) for rank in (0, 1) for key in found(run)):
        assert torch.equal(told[rank][key], found(run)[key]), (rank, key)
    return told


def end():
    torch.distributed.destroy_process_group()  # its threads sometimes abort an interpreter that just exits
