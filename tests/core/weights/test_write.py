from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from asepsis.core.weights import SafetensorsWriter, copy_checkpoint_except
from asepsis.errors import ConfigError, ModelError


def test_what_is_filled_in_is_what_the_library_reads(tmp_path):
    wanted = {
        "b": np.arange(3, dtype=np.float16),
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "é": np.arange(5, dtype=np.int64),
        "empty": np.empty((0, 4), np.float32),
    }
    names = {"float16": "F16", "float32": "F32", "int64": "I64"}
    path = tmp_path / "m.safetensors"
    with SafetensorsWriter(path, [(k, names[v.dtype.name], v.shape) for k, v in wanted.items()]) as writer:
        for name, value in wanted.items():
            writer.region(name)[:] = value.reshape(-1).view(np.uint8)
    found = load_file(path)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in wanted.items())
    with safe_open(str(path), framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_failure_leaves_no_file(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(RuntimeError), SafetensorsWriter(path, [("a", "F32", (2,))]):
        raise RuntimeError
    assert not path.exists()


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        SafetensorsWriter(path, [("a", "F32", (2,))])
    assert path.read_text() == "mine"


@pytest.mark.parametrize("tensors", [[("a", "F32", (2,)), ("a", "F32", (2,))], [("a", "F3", (2,))]])
def test_a_tensor_that_cannot_be_written_is_refused(tmp_path, tensors):
    with pytest.raises(ConfigError):
        SafetensorsWriter(tmp_path / "m.safetensors", tensors)


def test_only_what_is_neither_weights_nor_program_is_copied(tmp_path):
    source, output = tmp_path / "s", tmp_path / "o"
    source.mkdir()
    output.mkdir()
    kept = ["config.json", "tokenizer.json", "vocab.txt", "README.md", "tokenizer.model"]
    left = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "modeling_x.py",
        ".env",
        "note",
    ]
    for name in kept + left:
        (source / name).write_text(name)
    assert copy_checkpoint_except(source, output, leave=["note"]) == sorted(kept)
    assert sorted(p.name for p in output.iterdir()) == sorted(kept)


def test_a_link_to_somebodys_secret_is_not_copied(tmp_path):
    secret, source, output = tmp_path / "secret", tmp_path / "s", tmp_path / "o"
    secret.write_text("secret")
    source.mkdir()
    output.mkdir()
    (source / "README.md").symlink_to(secret)
    with pytest.raises(ModelError, match="leads out"):
        copy_checkpoint_except(source, output)
    assert not list(output.iterdir())
