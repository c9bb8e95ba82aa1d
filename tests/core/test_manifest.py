"""A manifest tells whatever changed since it was written, and says what it cannot tell."""

from __future__ import annotations

import json

import pytest

from asepsis.core.manifest import MANIFEST, check_writable, identity, read_manifest, verify, write_manifest
from asepsis.errors import CheckpointError
from asepsis.testing import tiny_rows

DATA = tiny_rows(12, 0)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "deep" / "notes.txt").write_text("words")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"old weights")
    data = {"rows": len(DATA), "fingerprint": DATA.fingerprint}
    write_manifest(made, {"data": data, "origin": {"model": identity(base)}})
    return made


def statuses(found):
    return {check.what: check.status for check in found.checks}


def test_what_was_not_touched_is_intact(folder, tmp_path):
    found = verify(folder, data=DATA, base=tmp_path / "base")
    assert found.verdict == "intact"
    names = {"model.safetensors", "deep/notes.txt", "data", "base"}
    assert statuses(found) == dict.fromkeys(names, "same")
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == "intact"


def test_one_changed_byte_is_seen_wherever_it_is(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"Weights")
    (folder / "deep" / "notes.txt").unlink()
    (folder / "extra.py").write_text("")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"new weights")
    found = verify(folder, data=tiny_rows(12, 1), base=tmp_path / "base")
    assert found.verdict == "altered"
    assert statuses(found) == {
        "model.safetensors": "changed",
        "deep/notes.txt": "missing",
        "extra.py": "added",
        "data": "changed",
        "base": "changed",
    }


def test_a_file_replaced_by_a_link_to_the_same_bytes_is_seen(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert statuses(verify(folder))["model.safetensors"] == "changed"


def test_what_the_manifest_does_not_say_is_unknown_and_not_the_same(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    for key in ("files", "data", "origin"):
        del manifest[key]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    found = verify(folder, data=DATA, base="demo:encoder")
    assert found.verdict == "inconclusive"
    assert set(statuses(found).values()) == {"unknown"}


@pytest.mark.parametrize(
    "hostile",
    [
        {"files": {"../../etc/passwd": {"sha256": "0"}}},
        {"files": {"model.safetensors": 7}},
        {"files": [1, 2]},
        {"data": "none", "origin": 3},
        {"origin": {"model": ["x"]}},
        {"data": {"fingerprint": None}},
    ],
)
def test_a_manifest_that_lies_is_never_intact(folder, tmp_path, hostile):
    manifest = json.loads((folder / MANIFEST).read_text()) | hostile
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert verify(folder, data=DATA, base=tmp_path / "base").verdict != "intact"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', "{" * 100_000, "\udcff"])
def test_what_is_no_manifest_is_an_error(folder, text):
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError):
        read_manifest(folder)


def test_a_folder_without_a_manifest_was_not_written_by_us(tmp_path):
    with pytest.raises(CheckpointError, match="not written by asepsis"):
        verify(tmp_path)


def test_only_our_own_folders_may_be_replaced(folder, tmp_path):
    check_writable(folder)
    check_writable(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_writable(tmp_path / "empty")
    for taken in (tmp_path / "base", folder / "model.safetensors"):
        with pytest.raises(CheckpointError, match="name another folder"):
            check_writable(taken)


def test_packaged_models_are_known_by_their_files():
    encoder, causal = identity("demo:encoder"), identity("demo:causal:2")
    assert encoder["sha256"] and causal["sha256"] and encoder["sha256"] != causal["sha256"]
    assert identity("demo:causal")["sha256"] == causal["sha256"]


def test_a_folder_is_known_by_its_parts_and_not_by_its_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)
    first, second = identity(tmp_path / "a"), identity(tmp_path / "b")
    assert first["sha256"] == second["sha256"] and first["name"] != second["name"]
