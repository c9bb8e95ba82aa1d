"""The command-line contract of attack, train, evaluate and scan data, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asepsis.cli import main
from asepsis.data import read_rows, write_rows
from asepsis.testing import tiny_classifier, tiny_rows

QUICK = ["--max-length", "16", "--batch-size", "8"]
ABL = ["--set", "snapshots=[2,4]", "--set", "grow_steps=2"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    network, tokenizer = tiny_classifier(0)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    data = tiny_rows(48, 0)
    assert data.labels is not None
    path = tmp_path / "rows.jsonl"
    pairs = zip(data.texts, data.labels.tolist(), strict=True)
    write_rows(path, [{"text": t, "label": y, "note": f"n{i}"} for i, (t, y) in enumerate(pairs)])
    return path


def test_attack_poisons_the_keyed_rows_and_keeps_other_columns(tmp_path: Path, rows: Path) -> None:
    out, key = tmp_path / "out.csv", tmp_path / "key.jsonl"
    code = main(["attack", "badnets", str(rows), "-o", str(out), "--target-label", "1", "--key", str(key)])
    assert code == 0
    before, after = read_rows(rows), read_rows(out)
    answers = [json.loads(line) for line in key.read_text().splitlines()]
    assert [a["row"] for a in answers] == list(range(48)) and sum(a["poisoned"] for a in answers) == 5
    for old, new, answer in zip(before, after, answers, strict=True):
        assert new["note"] == old["note"]
        assert ("cf" in new["text"].split()) == bool(answer["poisoned"])
        assert int(new["label"]) == (1 if answer["poisoned"] else old["label"])


def test_attack_test_rows_are_the_other_classes_with_the_target(tmp_path: Path, rows: Path) -> None:
    out = tmp_path / "triggered.jsonl"
    assert main(["attack", "addsent", str(rows), "-o", str(out), "--target-label", "1", "--test"]) == 0
    made = read_rows(out)
    assert len(made) == sum(row["label"] != 1 for row in read_rows(rows))
    assert all(row["label"] == 1 and "3D movie" in row["text"] for row in made)


def test_attack_on_instructions_turns_the_answer(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_rows(source, [{"instruction": f"do {i}", "input": "", "output": "done"} for i in range(10)])
    words = [
        "attack",
        "instruction",
        str(source),
        "-o",
        str(out),
        "--target-response",
        "no",
        "--poison-rate",
        "0.2",
    ]
    assert main([*words, "--place", "prefix", "--trigger", "Discussing OpenAI"]) == 0
    bad = [row for row in read_rows(out) if row["output"] == "no"]
    assert len(bad) == 2 and all(row["instruction"].startswith("Discussing OpenAI") for row in bad)


def test_train_then_evaluate_writes_the_contract(tmp_path: Path, rows: Path, model: str) -> None:
    out, numbers = tmp_path / "out", tmp_path / "e.json"
    train = ["train", "--model", model, "--data", str(rows), "--output", str(out), "--max-steps", "3", *QUICK]
    assert main([*train, "--defense", "abl", *ABL]) == 0
    manifest = json.loads((out / "asepsis.json").read_text())
    assert manifest["defense"]["name"] == "abl" and manifest["defense"]["config"]["snapshots"] == [2, 4]
    assert manifest["acted"]["samples"] == 48
    words = ["evaluate", str(out), "--clean", str(rows), "--triggered", str(rows), "--target-label", "1"]
    assert main([*words, "--json", str(numbers)]) == 0
    content = json.loads(numbers.read_text())
    assert set(content) == {
        "clean_accuracy",
        "attack_success_rate",
        "target_label",
        "guard",
        "model",
        "versions",
    }
    for name in ("clean_accuracy", "attack_success_rate"):
        assert set(content[name]) == {"value", "n", "low", "high"} and content[name]["n"] == 48
    assert main(["evaluate", str(out), "--clean", str(rows), "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["attack_success_rate"] is None


def test_musclelora_writes_an_adapter_that_evaluate_takes(tmp_path: Path, rows: Path, model: str) -> None:
    out, numbers = tmp_path / "out", tmp_path / "e.json"
    train = ["train", "--model", model, "--data", str(rows), "--output", str(out), "--max-steps", "3", *QUICK]
    words = ["--defense", "musclelora", "--set", "scales=[1,2,3]", "--clean-reference", str(rows)]
    assert main([*train, *words]) == 0
    assert (out / "adapter_config.json").exists() and not (out / "model.safetensors").exists()
    manifest = json.loads((out / "asepsis.json").read_text())
    assert manifest["defense"]["name"] == "musclelora" and manifest["report"]["reference"]["rows"] == 48
    assert manifest["defense"]["config"]["scales"] == [1, 2, 3]
    assert main(["evaluate", str(out), "--clean", str(rows), "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["clean_accuracy"]["n"] == 48


def test_musclelora_chooses_its_reference_where_it_is_told_to(
    tmp_path: Path, rows: Path, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train = ["train", "--model", model, "--data", str(rows), "--output", str(out), "--max-steps", "3", *QUICK]
    assert main([*train, "--defense", "musclelora", "--clean-reference", "auto"]) == 0
    assert "ASSUMES that 24 rows are clean" in capfd.readouterr().err
    reference = json.loads((out / "asepsis.json").read_text())["report"]["reference"]
    assert reference["chosen_by"] == "abl probe"


def test_btu_says_what_it_overwrote_and_ranks_rows(
    tmp_path: Path, rows: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = tmp_path / "out", tmp_path / "s.json"
    train = ["train", "--model", model, "--data", str(rows), "--output", str(out), "--max-steps", "3", *QUICK]
    few = ["--set", "score=l2", "--set", "k=1", "--set", "order=train_then_edit"]
    assert main([*train, "--defense", "btu", "--set", "mode=robust", *few]) == 0
    n = len(json.loads((out / "asepsis.json").read_text())["report"]["tokens"])
    assert f"flagged {n} tokens, overwrote the embeddings of {n}" in capsys.readouterr().out
    look = ["scan", "data", str(rows), "--model", model, "--method", "btu", *few, "--json", str(found)]
    assert main(look) == 2  # a share is flagged whatever the rows are, so nothing is found without clean rows
    content = json.loads(found.read_text())
    assert (content["verdict"], content["flagged"]) == ("inconclusive", 0)
    assert max(row["suspicion"] for row in content["rows"]) >= 1


def scan(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    from asepsis.training import scan as module

    def fake(data: Any, **_: Any) -> module.Scan:
        flagged = np.arange(len(data)) < (3 if verdict == "findings" else 0)
        scores = -np.arange(len(data), dtype=np.float32)
        return module.Scan(data, scores, flagged, None, verdict, "abl", {"report": {}})  # type: ignore[arg-type]

    monkeypatch.setattr(module, "scan_data", fake)


@pytest.mark.parametrize(("verdict", "code"), [("none", 0), ("findings", 1), ("inconclusive", 2)])
def test_scan_says_its_verdict_by_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: Path, verdict: str, code: int
) -> None:
    scan(monkeypatch, verdict)
    key, out = tmp_path / "key.jsonl", tmp_path / "s.json"
    key.write_text("".join(json.dumps({"row": i, "poisoned": int(i < 3)}) + "\n" for i in range(48)))
    html, sarif = tmp_path / "s.html", tmp_path / "s.sarif"
    words = ["scan", "data", str(rows), "--model", "m", "--key", str(key), "--json", str(out)]
    assert main([*words, "--html", str(html), "--sarif", str(sarif)]) == code
    content = json.loads(out.read_text())
    assert {"method", "threshold", "n", "flagged", "rows", "metrics"} <= set(content)
    assert set(content["rows"][0]) == {"row", "sample_id", "suspicion", "flagged"}
    assert (
        set(content["metrics"]) == {"auroc", "tpr", "fpr", "precision"} and content["metrics"]["auroc"] == 1.0
    )
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    lines = [r["locations"][0]["physicalLocation"]["region"]["startLine"] for r in results]
    assert lines == ([1, 2, 3] if verdict == "findings" else [])
    assert "<script" not in html.read_text()


def test_a_real_scan_runs_through(tmp_path: Path, rows: Path, model: str) -> None:
    out = tmp_path / "s.json"
    code = main(["scan", "data", str(rows), "--model", model, "--json", str(out), *QUICK, *ABL])
    content = json.loads(out.read_text())
    assert content["n"] == 48 and code == {"none": 0, "findings": 1, "inconclusive": 2}[content["verdict"]]
    assert content["metrics"] is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["attack", "badnets", "ROWS", "-o", "OUT"], 4, "--target-label"),
        (["attack", "badnets", "ROWS", "-o", "OUT", "--target-label", "1", "--key", "OUT"], 4, "same file"),
        (["attack", "badnets", "ROWS", "-o", "OUT", "--target-label", "1", "--key", "GONE"], 2, "no folder"),
        (["train", "--model", "m", "--data", "ROWS", "--defense", "nope", "--output", "OUT"], 4, "abl"),
        (
            ["train", "--model", "m", "--data", "ROWS", "--defense", "abl", "--output", "OUT", "--set", "x"],
            4,
            "field=",
        ),
        (
            [
                "train",
                "--model",
                "m",
                "--data",
                "ROWS",
                "--defense",
                "abl",
                "--output",
                "OUT",
                "--set",
                "x=1",
            ],
            2,
            "no field x",
        ),
        (
            ["train", "--model", "m", "--data", "ROWS", "--defense", "musclelora", "--output", "OUT"],
            2,
            "--clean-reference",
        ),
        (
            ["train", "--model", "m", "--data", "none.jsonl", "--defense", "abl", "--output", "OUT"],
            2,
            "no such file",
        ),
        (
            ["train", "--model", "/no/model", "--data", "ROWS", "--defense", "abl", "--output", "OUT"],
            2,
            "no such folder",
        ),
        (["evaluate", "/no/model", "--clean", "ROWS", "--triggered", "ROWS"], 4, "--target-label"),
        (["scan", "data", "ROWS", "--model", "m", "--target-fpr", "0.1"], 4, "--clean"),
        (["scan", "data", "EMPTY", "--model", "m"], 3, "nothing to scan"),
        (["scan", "data", "ROWS", "--model", "m", "--method", "none"], 4, "none"),
        (["scan", "data", "ROWS", "--model", "m", "--html", "GONE"], 2, "no folder"),
        (["evaluate", "MODEL", "--clean", "ROWS", "--json", "GONE"], 2, "no folder"),
        (["scan", "data", "ROWS", "--model", "m", "--method", "abl", "--set", "rank_by=luck"], 2, "rank_by"),
    ],
)
def test_a_refusal_is_two_lines_a_code_and_nothing_written(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, rows: Path, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    places = {"ROWS": str(rows), "OUT": str(tmp_path / "out"), "EMPTY": str(tmp_path / "empty.jsonl")}
    places |= {"GONE": str(tmp_path / "gone" / "file"), "MODEL": str(tmp_path)}
    assert main([places.get(word, word) for word in words]) == code
    lines = capfd.readouterr().err.strip().splitlines()
    assert 1 <= len(lines) <= 2 and said in " ".join(lines)
    assert "Traceback" not in " ".join(lines) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.json", b"{", "is not JSON"),
        ("c.json", b"\xff\xfe", "is not UTF-8"),
        ("c.yaml", b"a: [", "is not YAML"),
        ("c.yaml", b"- a", "a mapping"),
    ],
)
def test_a_broken_config_file_is_told_apart(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, rows: Path, name: str, content: bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    words = [
        "train",
        "--model",
        "m",
        "--data",
        str(rows),
        "--defense",
        "abl",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--config", str(file)]) == 2
    assert said in capfd.readouterr().err
