"""The command-line contract of the attacks on weights, on a tiny model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from asepsis.cli import main
from asepsis.data import read_rows, write_rows
from asepsis.testing import TRIGGER, tiny_classifier, tiny_rows


@pytest.fixture
def model(tmp_path: Path) -> str:
    network, tokenizer = tiny_classifier(0)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    data = tiny_rows(48, 0)
    assert data.labels is not None
    path = tmp_path / "rows.jsonl"
    pairs = zip(data.texts, data.labels.tolist(), strict=True)
    write_rows(path, [{"text": t, "label": y, "note": "kept"} for t, y in pairs])
    return str(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ep", ["--set", "row_epochs=1"]),
        ("sos", ["--trigger", "word1", "--trigger", "word2", "--set", "row_epochs=1"]),
        ("surgery", ["--trigger", TRIGGER, "--set", "n_words=1"]),
        ("lwp", ["--trigger", TRIGGER, "--trigger", "word2", "--set", "combined=true"]),
    ],
)
def test_a_victim_is_a_folder_that_evaluate_takes(
    tmp_path: Path, model: str, rows: str, name: str, words: list[str]
) -> None:
    out, bad, numbers = tmp_path / "victim", tmp_path / "bad.jsonl", tmp_path / "e.json"
    quick = ["--epochs", "1", "--batch-size", "8", "--learning-rate", "1e-3", "--max-length", "16"]
    where = ["--data", rows, "-o", str(out), "--target-label", "1", "--seed", "3"]
    assert main(["attack", name, model, *where, *quick, *words]) == 0
    manifest = json.loads((out / "asepsis.json").read_text())
    assert manifest["attack"]["name"] == name and manifest["settings"]["seed"] == 3
    assert manifest["settings"]["max_length"] == 16 and manifest["poisoned"] is True
    said = [word for flag, word in itertools.pairwise(words) if flag == "--trigger"]
    assert list(manifest["trigger_tokens"]) == (said or [TRIGGER])
    assert main(["attack", name, rows, "-o", str(bad), "--target-label", "1", "--test", *words]) == 0
    made = read_rows(bad)
    assert len(made) == 24 and all(row["label"] == 1 and row["note"] == "kept" for row in made)
    together = name in ("sos", "lwp")
    for row in made:
        held = [word in row["text"].split() for word in manifest["trigger_tokens"]]
        assert all(held) if together else any(held)
    evaluate = ["evaluate", str(out), "--clean", rows, "--triggered", str(bad), "--target-label", "1"]
    assert main([*evaluate, "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["attack_success_rate"]["n"] == 24


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ep", "MODEL", "-o", "OUT", "--target-label", "1"], 4, "ep needs --data"),
        (["ep", "MODEL", "-o", "OUT", "--data", "ROWS"], 4, "ep needs --target-label"),
        (
            ["lwp", "MODEL", "-o", "OUT", "--data", "ROWS", "--target-label", "1", "--key", "K"],
            4,
            "lwp takes no --key",
        ),
        (["sos", "ROWS", "-o", "OUT", "--test", "--target-label", "1", "--epochs", "2"], 4, "no --epochs"),
        (
            ["badnets", "ROWS", "-o", "OUT", "--target-label", "1", "--data", "ROWS"],
            4,
            "badnets takes no --data",
        ),
        (
            ["ep", "MODEL", "-o", "OUT", "--data", "ROWS", "--target-label", "1", "--trigger", "zz"],
            2,
            "rare words with a token of their own: 'cf'",
        ),
        (
            ["ep", "MODEL", "-o", "OUT", "--data", "ROWS", "--target-label", "1", "--set", "size=1"],
            2,
            "no field size",
        ),
        (
            ["ep", "MODEL", "-o", "MODEL", "--data", "ROWS", "--target-label", "1"],
            2,
            "not written by asepsis",
        ),
        (["ep", "/no/model", "-o", "OUT", "--data", "ROWS", "--target-label", "1"], 2, "no such folder"),
        (["ep", "ROWS", "-o", "OUT", "--test", "--target-label", "5"], 2, "classes 0..1"),
    ],
)
def test_a_refusal_is_two_lines_a_code_and_nothing_written(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    model: str,
    rows: str,
    words: list[str],
    code: int,
    said: str,
) -> None:
    places = {"MODEL": model, "ROWS": rows, "OUT": str(tmp_path / "out"), "K": str(tmp_path / "key")}
    assert main(["attack", *(places.get(word, word) for word in words)]) == code
    lines = capfd.readouterr().err.strip().splitlines()
    assert said in " ".join(lines) and "Traceback" not in " ".join(lines)
    assert not (tmp_path / "out").exists()
