from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asepsis.core.phases import Losses, Trained, Weights
from asepsis.core.purge import Purged
from asepsis.core.quality import Quality
from asepsis.core.state_file import read_state, states, write_state
from asepsis.errors import CheckpointError

LOSSES = Losses(np.array([0.1, np.nan], np.float32), np.array([1, 0]), np.array([True, False]))
TREE = {
    "plain": [None, True, False, 3, -(2**70), 0.1, "word", "ünï"],
    "odd": (math.inf, -math.inf, np.float32(0.1), np.int64(7), np.bool_(True)),
    "empty": [{}, [], ()],
    "nested": {"a": {"tuple": 1, "dict": 2, "record": 3, "float": 4}},
    "records": [LOSSES, Trained(3, 0.5, None, False, {"x": 1.0}, (Quality(2, None, 0.25),), 1), Weights(4)],
    "purged": Purged(1, 2, (0.5, 0.25)),
    "arrays": [np.arange(6, dtype=np.uint32).reshape(2, 3).T, np.zeros((0, 3)), np.array(True)],
    "tensors": [torch.tensor(1.5), torch.ones(2, 3, dtype=torch.bfloat16)[:, 1], torch.zeros(0)],
}


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    elif hasattr(a, "__dataclass_fields__"):
        same(vars(a), vars(b))
    else:
        assert a == b


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    found = read_state(write_state(tmp_path, 1, TREE))
    plain = {**TREE, "odd": (math.inf, -math.inf, float(np.float32(0.1)), 7, True)}
    same(found, plain)


def test_a_tensor_under_two_names_and_part_of_another_are_written(tmp_path):
    whole = torch.arange(10.0)
    found = read_state(write_state(tmp_path, 1, [whole, whole, whole[3:5], whole.view(2, 5)]))
    assert [t.tolist() for t in found[:3]] == [whole.tolist(), whole.tolist(), [3.0, 4.0]]


@pytest.mark.parametrize("value", [{1, 2}, {1: 2}, object(), 1j, torch.float32])
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(value, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be kept"):
        write_state(tmp_path, 1, [value])
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_anywhere_is_told(tmp_path):
    path = write_state(tmp_path, 1, TREE)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not as it was written"):
            read_state(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="not as it was written"):
        read_state(path)


def test_any_flipped_bit_is_told(tmp_path):
    path = write_state(tmp_path, 1, [1, torch.ones(3)])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="not as it was written"):
            read_state(path)


def test_a_missing_file_and_a_strange_name_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / f"state-00000001-{'0' * 32}.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not as it was written"):
        read_state(tmp_path / "x.safetensors")


def test_states_are_listed_by_number_and_nothing_else_is(tmp_path):
    paths = [write_state(tmp_path, number, number) for number in (9, 10)]
    (tmp_path / "state-00000011.safetensors").write_bytes(b"")
    (tmp_path / ".state-00000012.part").write_bytes(b"")
    assert states(tmp_path) == paths[::-1]
    assert states(tmp_path / "absent") == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    first = write_state(tmp_path, 1, "first")

    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asepsis.core.state_file.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_state(tmp_path, 2, "second")
    assert list(tmp_path.iterdir()) == [first]
    assert read_state(first) == "first"
