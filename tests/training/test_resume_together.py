"""Two processes that are broken off and resumed. Run as a script, this file is the worker."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asepsis.core.state_file import states, write_state
from asepsis.errors import BackendError, CheckpointError
from asepsis.testing import tiny_classifier
from asepsis.training import processes
from asepsis.training.resume import Journal, discard

_spec = importlib.util.spec_from_file_location("together_runs", Path(__file__).with_name("runs.py"))
runs = importlib.util.module_from_spec(_spec)
sys.modules["together_runs"] = runs
_spec.loader.exec_module(runs)

CASES = {"abl": 3, "musclelora": 1}  # batches between two checkpoints
MOMENTS = 2


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_processes_broken_off_at_any_moment_and_resumed_end_with_the_same_bits(tmp_path):
    worker = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*worker, str(tmp_path)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["different"] == []
        assert told["resumed"] == len(CASES) * MOMENTS, "runs must have gone on, not begun anew"
        assert told["went back"] >= 1, "once the newest checkpoint was whole in one process only"
        assert told["left"] == []


@pytest.fixture
def second_of_two(monkeypatch):
    """This process takes itself for the second of two; the first says what is put into ``other``."""
    other = {"numbers": [], "holds": True}
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(processes, "_device", lambda: torch.device("cpu"))

    def all_gather(gathered, told):
        gathered[0].copy_(torch.tensor(other["numbers"] + [-1] * (len(told) - len(other["numbers"]))))
        gathered[1].copy_(told)

    def all_reduce(said, op):
        assert op == torch.distributed.ReduceOp.MIN
        said.clamp_(max=int(other["holds"]))

    monkeypatch.setattr(processes.distributed, "all_gather", all_gather)
    monkeypatch.setattr(processes.distributed, "all_reduce", all_reduce)
    return other


def test_each_process_keeps_its_own_and_all_know_of_any(second_of_two, tmp_path):
    assert processes.own_folder(tmp_path) == tmp_path / "process-1-of-2"
    second_of_two["numbers"] = [4, 5]
    assert processes.known_to_any([3, 4]) == [5, 4, 3]
    assert processes.true_for_all(True) and not processes.true_for_all(False)
    second_of_two["holds"] = False
    assert not processes.true_for_all(True)


def test_without_resume_checkpoints_of_the_other_process_alone_are_not_written_over(second_of_two, tmp_path):
    second_of_two["numbers"] = [1]
    with pytest.raises(CheckpointError, match="1 checkpoints of an earlier run"):
        Journal(tmp_path).open({}, {})


def test_a_checkpoint_that_one_process_lacks_is_not_gone_on_from(second_of_two, tmp_path):
    second_of_two["numbers"] = [2]
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Journal(tmp_path, resume=True).open({}, {})


@pytest.mark.parametrize("left", ["", "process-0-of-4"])
def test_checkpoints_of_another_number_of_processes_are_refused(second_of_two, left, tmp_path):
    (tmp_path / left).mkdir(exist_ok=True)
    write_state(tmp_path / left, 1, {"a": 1})
    with pytest.raises(CheckpointError, match="another number of processes than 2"):
        Journal(tmp_path, resume=True).open({}, {})


def test_one_process_alone_refuses_checkpoints_of_two(tmp_path):
    (tmp_path / "process-0-of-2").mkdir()
    write_state(tmp_path / "process-0-of-2", 1, {"a": 1})
    with pytest.raises(CheckpointError, match="another number of processes than 1"):
        Journal(tmp_path, resume=True).open({}, {})
    discard(tmp_path)
    assert not tmp_path.exists()


def test_spread_weights_are_refused():
    model, _ = tiny_classifier(1)
    model.classifier.weight.to_local = lambda: None
    with pytest.raises(BackendError, match="spread over processes are not supported"):
        processes.check_resumable(model, None)


class BrokenOff(Exception):
    pass


def work(folder, rank):
    told = {"different": [], "resumed": 0, "went back": 0, "left": []}
    for case, every in CASES.items():

        def run(case=case, **options):
            return runs.run(case, args=runs.arguments(folder / "args"), **options)

        calls = []
        wanted = runs.result(run(progress=lambda *_, calls=calls: calls.append(1)))
        for moment in random.Random(case).sample(range(max(1, len(calls) // 3), len(calls)), MOMENTS):
            left = iter(range(moment))

            def progress(*_, left=left):
                if next(left, None) is None:
                    raise BrokenOff

            checkpoints = folder / f"{case} {moment}"
            with contextlib.suppress(BrokenOff):
                run(progress=progress, checkpoint_dir=checkpoints, checkpoint_every=every)
            torch.distributed.barrier()
            own = checkpoints / f"process-{rank}-of-2"
            told["resumed"] += len(states(own)) > 0
            if len(states(own)) > 1:  # one was killed before it wrote what the other has
                told["went back"] += 1
                if rank == moment % 2:
                    states(own)[0].unlink()
            found = runs.result(run(checkpoint_dir=checkpoints, checkpoint_every=every, resume=True))
            told["different"] += [
                f"{case} {moment} {k}" for k in wanted if not torch.equal(found[k], wanted[k])
            ]
            torch.distributed.barrier()
            if rank == 0:
                discard(checkpoints)
                told["left"] += [str(p) for p in checkpoints.rglob("*")]
    (folder / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), int(os.environ["RANK"]))
    torch.distributed.destroy_process_group()  # its threads sometimes abort an interpreter that just exits
