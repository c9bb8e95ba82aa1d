"""Work in a process of its own gives the same, and what goes wrong there is said here."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from asepsis.errors import AccuracyLost, AsepsisError, ModelError
from asepsis.evaluation.grid import run_grid
from asepsis.evaluation.grid.apart import apart, here, runner
from asepsis.evaluation.grid.memory import Peak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forkserver")


class Stubborn(Exception):
    """Cannot be made again from its message."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@contextmanager
def told():
    os.environ["ASEPSIS_TOLD"] = "yes"
    yield


def asked():
    return os.getpid(), os.environ.get("ASEPSIS_TOLD")


def grown():
    with Peak() as peak:
        held = np.ones(8_000_000)
        del held
    return peak.bytes


def lost():
    raise AccuracyLost("too much", [{"ratio": 0.1}])


def stubborn():
    raise Stubborn(1, 2)


def gone():
    os._exit(3)


def test_it_runs_elsewhere_within_what_was_asked_for():
    here, before = asked()
    there, within = apart(asked, within=told)
    assert there != here and within == "yes" and before is None
    assert asked() == (here, None)


def test_memory_is_that_of_the_work_alone():
    if torch.cuda.is_available():
        assert runner() is here  # a GPU's counter knows what is in use
        return
    assert runner() is apart
    for _ in range(2):
        assert 64_000_000 <= apart(grown) < 72_000_000


def test_what_it_raises_is_raised_here_with_its_traceback():
    with pytest.raises(AccuracyLost, match="too much") as caught:
        apart(lost)
    assert caught.value.reached == [{"ratio": 0.1}]
    assert "in lost" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Stubborn: 1 and 2"):
        apart(stubborn)
    with pytest.raises(AsepsisError, match="ended with 3"):
        apart(gone)


def test_cells_are_the_same_and_an_error_of_the_grid_ends_the_run(declare, place, tmp_path):
    grid = declare(
        defenses={"none": {}, "zscore": {"bar": 2.0}, "confidence": {}},
        attacks={"badnets": {"attack": "badnets", "poison_rate": 0.2}},
    )
    cells = {}
    for name, options in {"here": {}, "apart": {"runner": apart}}.items():
        written = run_grid(grid, tmp_path / name, data=place, **options)
        cells[name] = [json.loads(path.read_text()) for path in written]
    assert len(cells["apart"]) == 3
    for one, other in zip(cells["here"], cells["apart"], strict=True):
        for field in ("clean_accuracy", "attack_success_rate", "detection", "declared"):
            assert one[field] == other[field], field
        assert other["peak_bytes"] > 0
    nowhere = declare(model=str(place / "nowhere"), defenses={"none": {}}, attacks={"clean": {}})
    with pytest.raises(ModelError):
        run_grid(nowhere, tmp_path / "none", data=place, runner=apart)
