"""Hostile weights: each gets a clear error, no code runs, nothing is written or fetched, memory is bounded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hostile import Case
from hostile.adapters import ADAPTERS
from hostile.folders import CONFIGS, INDEXES, MARKER, PICKLES
from hostile.guards import GUARDS, LEDGERS, MANIFESTS
from hostile.tensors import HEADERS, VALUES
from hostile.tokenizers import TOKENIZERS

MODELS = [*HEADERS, *VALUES, *CONFIGS, *INDEXES, *PICKLES, *TOKENIZERS]

#: Every command that reads a model, by the name that cases give it. OUT must not be there afterwards.
DOORS = {
    "scan": "scan model {folder} --base {sound}/base --counts {sound}/counts.json --json {out}",
    "purify": "purify {folder} --base {sound}/base --defense epur --counts {sound}/counts.json --output {out}",
    "train": "train --model {folder} --data {sound}/rows.jsonl --defense none --max-steps 1 --output {out}",
    "evaluate": "evaluate {folder} --clean {sound}/rows.jsonl --json {out}",
    "guard": "guard fit {folder} --clean {sound}/rows.jsonl --detector confidence --target-fpr 0.2 --output {out}",
}
ADAPTER_DOORS = {
    "scan": DOORS["scan"],
    "evaluate": DOORS["evaluate"],
    "export": "export {folder} --output {out} --merge",
}


def knock(line: str, capsys: Any, **places: Path) -> tuple[int, str]:
    """Run one command line, and return its code and what it said on stderr."""
    from asepsis.cli import main

    capsys.readouterr()
    code = main([word.format(**places) for word in line.split()])
    return code, capsys.readouterr().err


def check_refused(
    case: Case, line: str, capsys: Any, tmp_path: Path, asked: list[Any], **places: Path
) -> None:
    before = {p for p in tmp_path.rglob("*") if not p.is_symlink()}
    code, said = knock(line, capsys, out=tmp_path / "out", **places)
    lines = [text for text in said.splitlines() if text]
    assert code == 2, f"{case.name}: exit {code}, {said}"
    assert "internal error" not in said, said
    assert lines and len(lines) <= 2 and "Traceback" not in said, said
    assert re.search(case.says, said), said
    assert max(map(len, lines)) <= 2100
    assert not (tmp_path / MARKER).exists(), "code was run"
    after = {p for p in tmp_path.rglob("*") if not p.is_symlink()}
    assert before == after, "something was written"
    assert not asked, f"the network was asked for {asked}"


def pairs(cases: list[Case], doors: dict[str, str]) -> list[Any]:
    """Every case at every door it knocks at: at one of them in seconds, at the others in the slow suite."""
    found = []
    for number, case in enumerate(cases):
        open_to = [door for door in doors if door not in case.passes]
        for at, door in enumerate(open_to):
            marks = () if at == number % len(open_to) else pytest.mark.slow
            found.append(pytest.param(case, door, id=f"{door}: {case.name}", marks=marks))
    return found


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(("case", "door"), pairs(MODELS, DOORS))
def test_a_hostile_model_is_refused(case, door, sound, copied, tmp_path, denied, capsys):
    folder = copied("model")
    case.make(folder)
    check_refused(case, DOORS[door], capsys, tmp_path, denied, folder=folder, sound=sound)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(("case", "door"), pairs(ADAPTERS, ADAPTER_DOORS))
def test_a_hostile_adapter_is_refused(case, door, sound, copied, tmp_path, denied, capsys):
    folder = copied("adapter")
    case.make(folder)
    check_refused(case, ADAPTER_DOORS[door], capsys, tmp_path, denied, folder=folder, sound=sound)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", GUARDS, ids=lambda case: case.name)
def test_a_hostile_guard_is_refused(case, sound, copied, tmp_path, denied, capsys):
    folder = copied("guard")
    case.make(folder)
    line = "guard check {folder} {sound}/rows.jsonl --json {out}"
    check_refused(case, line, capsys, tmp_path, denied, folder=folder, sound=sound)


@pytest.mark.parametrize("case", MANIFESTS, ids=lambda case: case.name)
def test_a_hostile_manifest_is_refused(case, copied, tmp_path, denied, capsys):
    folder = copied("model")
    (folder / "asepsis.json").write_text("{}")
    case.make(folder)
    check_refused(case, "verify {folder} --json {out}", capsys, tmp_path, denied, folder=folder)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", LEDGERS, ids=lambda case: case.name)
def test_a_hostile_ledger_is_refused(case, copied):
    from asepsis.core.ledger import LossLedger
    from asepsis.errors import LedgerError

    folder = copied("ledgers")
    case.make(folder)
    with pytest.raises(LedgerError, match=case.says):
        LossLedger.load(folder / "ledger.safetensors")


def test_the_sound_ones_pass_every_door(sound, copied, tmp_path, denied, capsys):
    # else every refusal above could be for another reason
    model, adapter, guard = copied("model"), copied("adapter"), copied("guard")
    lines = [
        *((line, model) for line in DOORS.values()),
        *((line, adapter) for line in ADAPTER_DOORS.values()),
    ]
    lines.append(("guard check {folder} {sound}/rows.jsonl --json {out}", guard))
    for number, (line, folder) in enumerate(lines):
        code, said = knock(line, capsys, folder=folder, sound=sound, out=tmp_path / f"out-{number}")
        # so small a vocabulary is too small for a verdict, which is a 2 without an error
        assert code in (0, 1) or (line == DOORS["scan"] and "error" not in said), f"{line}: {said}"
        assert (tmp_path / f"out-{number}").exists()
    assert not denied


def test_pickles_and_code_beside_sound_weights_stay_where_they_are(sound, copied, tmp_path, denied, capsys):
    import pickle

    from hostile.folders import CODE, Payload

    folder = copied("model")
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    (folder / "modeling.py").write_text(CODE)
    (folder / "sitecustomize.py").write_text(CODE)
    for number, line in enumerate(DOORS.values()):
        _, said = knock(line, capsys, folder=folder, sound=sound, out=tmp_path / f"out-{number}")
        assert "error" not in said, f"{line}: {said}"
        assert (tmp_path / f"out-{number}").exists()
    assert not (tmp_path / MARKER).exists()
    written = {path.name for path in tmp_path.glob("out-*/*")}
    assert not {name for name in written if name.endswith((".bin", ".pt", ".py"))}


def test_a_hub_id_that_the_user_names_is_asked_for_and_nothing_else_is(sound, tmp_path, denied, capsys):
    line = "train --model owner/name --data {sound}/rows.jsonl --defense none --output {out}"
    code, said = knock(line, capsys, sound=sound, out=tmp_path / "out")
    assert code == 2
    assert "owner/name is neither a folder nor to be had from the hub" in said
    assert set(map(str, denied)) <= {"huggingface.co"}
    assert denied
