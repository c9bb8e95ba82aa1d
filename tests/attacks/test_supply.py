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
        # as the tools say it
        (
            1,
            "2024-03-23 [ERROR] failed to fetch advisory database https://github.com/RustSec/advisory-db: An IO error occurred "
            "when talking to the server: error sending request for url",
            0,
            1,
            "NOT CHECKED",
        ),
        (
            1,
            "    Fetching advisory database from `https://github.com/RustSec/advisory-db.git`\n"
            "error: couldn't fetch advisory database: git operation failed: failed to fetch repo",
            0,
            1,
            "NOT CHECKED: cargo-deny could not reach its database: error: couldn't fetch",
        ),
        (1, "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", 0, 1, "NOT CHECKED"),
        # an advisory speaks of networks: it is a finding all the same
        (
            1,
            "error[vulnerability]: Connection pool leaks, requests over the network timed out\nadvisories FAILED",
            1,
            1,
            "pool leaks",
        ),
        (1, "Found 1 known vulnerability in 1 package\nurllib3 1.0 connection timed out", 1, 1, "urllib3"),
        (
            1,
            "warning: couldn't update crates.io index: failed to connect\nCrate: a\nerror: 2 vulnerabilities found!",
            1,
            1,
            "2 vulnerabilities",
        ),
        (101, "thread 'main' panicked", 1, 1, "panicked"),
        (2, "", 1, 1, "ended with 2"),
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


def test_the_tools_are_run_as_they_are_found(audit, monkeypatch, tmp_path, capsys):
    # stand-ins on the path: what is asked of them, and where, is what is tested
    for tool, says, code in (
        ("cargo", "error: 1 vulnerability found!", 1),
        ("cargo-deny", "", 0),
        ("cargo-audit", "", 0),
        ("pip-audit", "No known vulnerabilities found", 0),
    ):
        program = tmp_path / tool
        program.write_text(f'#!/bin/sh\necho "$PWD $0 $@" >> {tmp_path}/asked\necho "{says}"\nexit {code}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert audit.main([]) == 1
    said = capsys.readouterr().out
    assert "audit: cargo-deny:\nerror: 1 vulnerability found!" in said
    assert "audit: pip-audit found nothing" in said
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in asked] == [
        "deny --all-features check",
        "audit --deny warnings",
        "--requirement .ci/constraints.txt --no-deps --disable-pip",
    ]
    assert all(Path(line.split(" ")[0]) == ROOT for line in asked)


def test_every_pin_has_one_version():
    # pip-audit without pip takes nothing else
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert len(pins) > 20
    assert not [pin for pin in pins if not re.match(r"[A-Za-z0-9._-]+==[^\s*]+(\s*;.*)?$", pin)]


def test_what_cargo_deny_is_told_is_what_it_takes():
    tomllib = pytest.importorskip("tomllib")
    told = tomllib.loads((ROOT / "deny.toml").read_text())
    assert {section: sorted(values) for section, values in told.items()} == {
        "graph": ["all-features"],
        "advisories": ["yanked"],
        "licenses": ["allow"],
        "bans": ["multiple-versions", "wildcards"],
        "sources": ["allow-registry", "unknown-git", "unknown-registry"],
    }


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
