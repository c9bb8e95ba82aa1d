"""Two processes against one. Run as a script, this file is the worker of :func:`train_on_two`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from asepsis.core.alignment import Alignment
from asepsis.core.lora import Branch, insert
from asepsis.core.losses import Flooding, LossRule
from asepsis.core.phases import Acted, Outcome, Train
from asepsis.data import Data
from asepsis.testing import tiny_classifier
from asepsis.training.driver import derive_seed
from asepsis.training.plan import make_plan
from asepsis.training.trainer import TrainerDriver

BATCH = 4
GAMMA = 1.0


def rows_of_two_lengths(n):
    """Short rows of class 0, long ones of class 1: batches of like length then hold one class each."""
    labels = np.arange(n) % 2
    texts = [f"word{i} " + "word1 word2 word3" * int(label) for i, label in enumerate(labels)]
    return Data(task="classification", texts=texts, labels=labels, n_classes=2)


ONE_PASS = Alignment(reference=rows_of_two_lengths(7), batch_size=7, min_reference_loss=0.0)
CASES = {
    "sign": (8, Train(name="t", loss=Flooding(GAMMA), steps=1)),
    "short batches": (10, Train(name="t", loss=LossRule(), epochs=4)),
    "aligned": (10, Train(name="t", epochs=4, alignment=ONE_PASS)),
    "aligned in two passes": (10, Train(name="t", epochs=4, alignment=replace(ONE_PASS, passes="two"))),
    # one reference row a step: one rank has none
    "aligned with one row": (10, Train(name="t", epochs=4, alignment=replace(ONE_PASS, batch_size=1))),
}


def sure_of_class_0():
    model, tokenizer = tiny_classifier(0, dropout=0.0)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, 0.0]))
    return model, tokenizer


def train(case, folder, *, accumulation, learning_rate=1e-2):
    n, request = CASES[case]
    model, tokenizer = sure_of_class_0()
    if request.alignment is not None:
        torch.manual_seed(0)
        low_rank = Branch(rank=3, alpha=3.0, init="reference")
        insert(model, {"bert.pooler.dense": low_rank, "classifier": Branch(full=True)})
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        warmup_steps=0,
        optim="sgd",  # AdamW's first step has the size of the rate whatever the gradient's
        max_grad_norm=0.0,
    )
    driver = TrainerDriver(model, tokenizer, rows_of_two_lengths(n), args, max_length=32)
    trained = []

    def script():
        trained.append((yield request))
        return Outcome(acted=Acted(steps=1))

    driver.run(script())
    weights = {k: v.detach().clone() for k, v in model.named_parameters()}
    aligned = {k: torch.tensor(v) for k, v in (trained[0].alignment or {}).items() if k != "passes"}
    return {
        **weights,
        **aligned,
        "steps": torch.tensor(trained[0].steps),
        "loss": torch.tensor(trained[0].loss),
    }


def train_on_two(case, folder):
    worker = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*worker, case, str(folder)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does_with_twice_the_batch(case, tmp_path):
    ranks = train_on_two(case, tmp_path)
    alone = train(case, tmp_path, accumulation=2)
    start = train(case, tmp_path / "start", accumulation=2, learning_rate=0.0)
    moved = [k for k, v in start.items() if not torch.equal(alone[k], v) and k not in ("steps", "loss")]
    assert any(k.endswith(("weight", "lora_A")) for k in moved)
    for found in ranks:
        for name, wanted in alone.items():
            torch.testing.assert_close(
                found[name], wanted, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_sign_case_has_ranks_that_would_disagree():
    n, request = CASES["sign"]
    data = rows_of_two_lengths(n)
    plan = make_plan(request, data, epochs=1, batch_size=BATCH, accumulation=2, seed=derive_seed(42, 1))
    classes = [{int(data.labels[p]) for p, _ in batch} for batch in plan]
    assert sorted(map(tuple, classes)) == [(0,), (1,)]
    model, tokenizer = sure_of_class_0()
    with torch.no_grad():
        logits = model.eval()(**tokenizer(list(data.texts), return_tensors="pt", padding=True)).logits
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels), reduction="none")
    assert losses[::2].mean() < GAMMA < losses.mean() < losses[1::2].mean()


def test_the_short_batches_case_has_a_short_batch_before_the_last_step():
    n, request = CASES["short batches"]
    plan = make_plan(
        request, rows_of_two_lengths(n), epochs=1, batch_size=BATCH, accumulation=2, seed=derive_seed(42, 1)
    )
    sizes = [len(batch) for batch in plan]
    assert min(sizes[1:-2:2]) < BATCH, "the second rank must meet one"


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    result = train(sys.argv[1], Path(sys.argv[2]), accumulation=1)
    save_file(result, str(Path(sys.argv[2]) / f"{os.environ['RANK']}.safetensors"))
    torch.distributed.destroy_process_group()  # its threads sometimes abort an interpreter that just exits
