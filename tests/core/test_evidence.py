"""The arrays a report draws: kept as they are, and refused where they are not what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from asepsis.core.evidence import EVIDENCE, moved_tokens, read_evidence, write_evidence
from asepsis.core.manifest import identity
from asepsis.errors import CheckpointError

LOSSES = {"loss.steps": np.array([0, 20]), "loss.values": np.ones((2, 3), np.float32)}


def test_what_was_kept_is_read_again(tmp_path):
    arrays = {
        **LOSSES,
        **moved_tokens(np.arange(4), np.ones(4), None),
        "row.poisoned": np.array([True, False, True]),
    }
    write_evidence(tmp_path, arrays)
    found = read_evidence(tmp_path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_nothing_kept_is_no_file(tmp_path):
    write_evidence(tmp_path, {})
    assert list(tmp_path.iterdir()) == [] and read_evidence(tmp_path) == {}


def test_what_a_run_says_of_itself_is_no_part_of_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = identity(tmp_path)
    write_evidence(tmp_path, LOSSES)
    assert identity(tmp_path) == before


@pytest.mark.parametrize(
    "arrays",
    [
        {"loss.steps": np.array([0, 20])},
        {"loss.steps": np.array([20, 0]), "loss.values": np.ones((2, 3), np.float32)},
        {"loss.steps": np.array([0, 20]), "loss.values": np.ones((3, 3), np.float32)},
        {"loss.steps": np.array([0, 20]), "loss.values": np.ones((2, 3))},
        {"loss.steps": np.array([0, 20]), "loss.values": np.ones((2, 0), np.float32)},
        {**LOSSES, "row.poisoned": np.ones(4, bool)},
        {**LOSSES, "row.poisoned": np.ones(3, np.int64)},
        {"token.id": np.arange(2), "token.drift": np.ones(3, np.float32)},
        {"token.drift": np.ones(3, np.float32)},
        {"model.weight": np.ones(3, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_are_neither_written_nor_read(tmp_path, arrays):
    with pytest.raises(CheckpointError):
        write_evidence(tmp_path, arrays)
    save_file(arrays, tmp_path / EVIDENCE)
    with pytest.raises(CheckpointError, match=EVIDENCE):
        read_evidence(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_a_broken_file_says_so(tmp_path, content):
    (tmp_path / EVIDENCE).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_evidence(tmp_path)
