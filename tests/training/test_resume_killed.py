"""``kill -9`` at random moments. Run as a script, this file is what is killed: it forks, so imports are paid for once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 22
_SEED = 20


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", ["abl", "musclelora", pytest.param("btu", marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_and_resumed_equal_one_that_was_not(case, tmp_path):
    command = [sys.executable, __file__, case, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= KILLS
    assert found["resumed"] >= KILLS // 3, "runs must have gone on, not begun anew each time"
    assert found["ended"] >= 1
    assert found["moments"] >= 5, "requests and steps the kills came in"
    assert found["different"] == []


def main(case: str, folder: Path) -> None:
    """Print how often a run was killed, and what differed from the run that was not."""
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, str(Path(__file__).parent))
    import runs

    from asepsis.core.state_file import read_state, states
    from asepsis.errors import CheckpointError

    torch.set_num_threads(1)
    wanted, found, checkpoints = folder / "wanted", folder / "found", folder / "checkpoints"

    def begin(**options: object) -> int:
        child = os.fork()  # no thread of torch has started yet: nothing was computed here
        if child:
            return child
        try:
            target = found if options else wanted
            runs.save_result(runs.run(case, **options), target)
        except BaseException as error:
            print(f"the run failed: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)

    def ended(child: int, seconds: float) -> bool:
        """Kill after a while; whether the run had ended before."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0
                return True
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        return os.WIFEXITED(os.waitpid(child, 0)[1])

    began = time.monotonic()
    assert ended(begin(), 600)
    length = time.monotonic() - began
    chance = random.Random(_SEED)
    kills = resumed = ended_resumed = 0
    different: list[str] = []
    moments = set()
    while kills < KILLS or not ended_resumed:
        went_on = bool(states(checkpoints))
        resumed += went_on
        child = begin(checkpoint_dir=checkpoints, checkpoint_every=chance.randint(1, 4), resume=True)
        spared = kills >= KILLS and went_on
        if not ended(child, 600 if spared else chance.uniform(0.02, 1) * length):
            kills += 1
            for path in states(checkpoints)[:1]:
                try:
                    state = read_state(path)
                except CheckpointError:
                    moments.add("torn")
                    continue
                running = state["running"]
                moments.add((len(state["entries"]), running and running["watch"]["steps"]))
            continue
        ended_resumed += went_on
        reference, result = load_file(wanted), load_file(found)
        different += [k for k in {*reference, *result} if not torch.equal(reference[k], result[k])]
        found.unlink()
        for path in checkpoints.iterdir():
            path.unlink()
    counts = {"kills": kills, "resumed": resumed, "ended": ended_resumed, "moments": len(moments)}
    print(json.dumps({**counts, "different": different}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
