"""One of two processes is killed in the midst of a training. Run as a script, this file is the worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import asepsis
from asepsis.testing import tiny_classifier, tiny_rows


def train(folder: Path) -> None:
    from transformers import TrainingArguments

    model, tokenizer = tiny_classifier(1)
    args = TrainingArguments(
        output_dir=str(folder / "args"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        seed=3,
    )
    seen = []

    def progress(name: str, done: int, of: int) -> None:
        seen.append(name)
        if len(seen) == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    run = asepsis.defend(
        model,
        tiny_rows(48, 0),
        defense=asepsis.AblConfig(snapshots=(2, 4), grow_steps=3),
        processing_class=tokenizer,
        args=args,
        progress=progress,
    )
    run.save_pretrained(folder / "out")


@pytest.mark.slow
def test_the_others_end_and_nothing_is_saved(tmp_path):
    worker = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*worker, str(tmp_path)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "-9" in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
