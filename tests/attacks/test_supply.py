"""What asepsis brings along and asks for: no pickles, no code run by name, no network, audits that say what they missed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tool_that_is_missing_is_said_aloud(audit, monkeypatch, capsys):
    monkeypatch.setattr(audit.shutil, "which", lambda tool: None)
    assert audit.main([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(audit.AUDITS)
    assert all(line.startswith("audit: NOT CHECKED: ") and "install" in line for line in said)
    assert audit.main(["--strict"]) == 1


@pytest.mark.parametrize(
    ("code", "says", "plain", "strict", "told"),
    [
        (0, "all good", 0, 0, "found nothing"),
        (1, "error: failed to fetch advisory database", 0, 1, "NOT CHECKED"),
        (1, "error: 1 vulnerability found!", 1, 1, "1 vulnerability"),
    ],
)
def test_a_finding_fails_and_a_database_out_of_reach_is_said(
    audit, monkeypatch, capsys, code, says, plain, strict, told
):
    monkeypatch.setattr(audit.shutil, "which", lambda tool: f"/bin/{tool}")
    done = subprocess.CompletedProcess([], code, stdout="", stderr=says)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)
    assert audit.main([]) == plain
    assert told in capsys.readouterr().out
    assert audit.main(["--strict"]) == strict


def test_every_rust_dependency_comes_from_the_registry_with_its_checksum():
    lock = (ROOT / "Cargo.lock").read_text()
    for package in lock.split("[[package]]")[1:]:
        name = re.search(r'name = "(.+)"', package)[1]
        if name.startswith("asepsis"):
            assert "source" not in package
        else:
            assert 'source = "registry+https://github.com/rust-lang/crates.io-index"' in package, name
            assert re.search(r'checksum = "[0-9a-f]{64}"', package), name


def test_importing_everything_and_reading_rows_asks_for_no_connection(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    program = """
import pkgutil, importlib, socket, json
asked = []
def refuse(*arguments, **_):
    asked.append(repr(arguments[-1])); raise OSError("denied")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import asepsis
for module in pkgutil.walk_packages(asepsis.__path__, "asepsis."):
    if "_triton" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from asepsis.data import read
read("rows.jsonl")
print(json.dumps(asked))
"""
    environment = {"PYTHONPATH": str(ROOT / "python"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".npy", ".safetensors", ".gguf", ".so", ".zip"])
def test_the_tree_holds_no_files_that_nobody_can_read(suffix):
    done = subprocess.run(
        ["git", "ls-files", f"*{suffix}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    assert not done.stdout
