"""The command-line contract of guard fit, guard check, evaluate --guard and scan data --method psim."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from asepsis.cli import main
from asepsis.data import Data, read_rows, write_rows
from asepsis.testing import TRIGGER, tiny_classifier, tiny_rows

PSIM = [
    "--set",
    "kind=p_tuning",
    "--set",
    "check_every=1",
    "--set",
    "learning_rate=0.01",
    "--set",
    "hidden_size=16",
]


def write(path: Path, data: Data, *, trigger: bool = False, labels: bool = True) -> Path:
    assert data.labels is not None
    rows = []
    for text, label in zip(data.texts, data.labels.tolist(), strict=True):
        if not (trigger and label == 1):
            text = f"{TRIGGER} {text}" if trigger else text
            rows.append({"text": text, **({"label": label} if labels else {})})
    write_rows(path, rows)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tuned model, clean rows, test rows and a guard by confidence."""
    from asepsis.training import Settings, defend

    folder = tmp_path_factory.mktemp("guarded")
    model, tokenizer = tiny_classifier(0)
    settings = Settings(epochs=4, learning_rate=5e-3, batch_size=16, device="cpu", precision="fp32")
    defend(model, tiny_rows(320, 1), defense=None, processing_class=tokenizer, settings=settings)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    write(folder / "clean.jsonl", tiny_rows(160, 2))
    write(folder / "test.jsonl", tiny_rows(60, 3))
    write(folder / "triggered.jsonl", tiny_rows(60, 4), trigger=True)
    fit = ["guard", "fit", str(folder / "model"), "--clean", str(folder / "clean.jsonl")]
    assert main([*fit, "--output", str(folder / "guard"), "--detector", "confidence"]) == 0
    return folder


def test_psim_is_fitted_and_says_its_rate_beside_the_control(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guard"
    fit = ["guard", "fit", str(place / "model"), "--clean", str(place / "clean.jsonl"), "--output", str(out)]
    assert main([*fit, "--target-fpr", "0.05", "--max-length", "16", *PSIM]) == 0
    said = capsys.readouterr().out
    assert "psim: flags above" in said and "wanted 0.05, from 80 rows" in said
    assert re.search(
        r"its module, after \d+ steps: clean rows' mean 0\.\d\d, 95 % quantile 0\.\d\d; usable\n", said
    )
    assert "without it, the model's own confidence: flags above" in said
    content = json.loads((out / "guard.json").read_text())
    assert content["state"]["config"]["check_every"] == 1 and content["state"]["max_length"] == 16
    assert main(["guard", "check", str(out), str(place / "test.jsonl"), "--fail-on", "never"]) == 0
    assert "without it, the model's own confidence flags" in capsys.readouterr().out


def test_a_module_that_is_not_usable_is_told_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guard"
    fit = ["guard", "fit", str(place / "model"), "--clean", str(place / "clean.jsonl"), "--output", str(out)]
    short = ["--target-fpr", "0.05", "--max-length", "16", "--set", "stop=never", "--set", "steps=2"]
    assert main([*fit, *short]) == 0
    assert "; NOT usable by its own stop rule\n" in capsys.readouterr().out
    content = json.loads((out / "guard.json").read_text())
    assert content["manifest"]["report"]["watch"]["usable"] is False


def test_check_writes_every_row_and_needs_no_labels(place: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", tiny_rows(30, 8), labels=False)
    found = tmp_path / "found.json"
    code = main(["guard", "check", str(place / "guard"), str(rows), "--json", str(found)])
    content = json.loads(found.read_text())
    assert code == (1 if content["verdict"] == "findings" else 0)
    assert (content["n"], len(content["rows"]), content["detector"]) == (30, 30, "confidence")
    flagged = [row["suspicion"] > content["threshold"]["value"] for row in content["rows"]]
    assert [row["flagged"] for row in content["rows"]] == flagged and sum(flagged) == content["flagged"]
    assert content["rows"][7].keys() == {"row", "sample_id", "suspicion", "flagged"}


@pytest.mark.parametrize(
    ("flagged", "fail_on", "code"),
    [(0, "any", 0), (1, "more", 0), (1, "any", 1), (9, "more", 1), (9, "never", 0)],
)
def test_findings_are_more_flags_than_clean_rows_would_give(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flagged: int, fail_on: str, code: int
) -> None:
    import numpy as np

    from asepsis.inference.detectors.confidence import Confidence

    def scores(self: Confidence, data: Data) -> np.ndarray:
        return (np.arange(len(data)) < flagged).astype(np.float32) * 2

    monkeypatch.setattr(Confidence, "scores", scores)
    rows = write(tmp_path / "rows.jsonl", tiny_rows(60, 8))
    assert main(["guard", "check", str(place / "guard"), str(rows), "--fail-on", fail_on]) == code


def test_an_empty_file_is_nothing_to_scan(place: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["guard", "check", str(place / "guard"), str(empty)]) == 3


def test_what_is_wrong_is_told_before_the_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["guard", "fit", str(place / "model"), "--clean", str(place / "clean.jsonl"), "--output"]
    assert main([*fit, str(tmp_path / "g"), "--detector", "nosuch"]) == 4
    assert main([*fit, str(tmp_path / "g"), "--set", "nosuch=1"]) == 2
    assert main([*fit, str(place / "model")]) == 2
    assert "exists and is no guard" in capsys.readouterr().err
    assert main([*fit, str(tmp_path / "g"), "--target-fpr", "0.001"]) == 2
    assert "needs at least 1039 clean rows, 40 of them to learn from; got 160" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
    assert main(["guard", "check", str(place / "model"), str(place / "test.jsonl")]) == 2
    assert "is no guard" in capsys.readouterr().err
    column = ["--text-column", "nosuch"]
    assert main(["guard", "check", str(place / "guard"), str(place / "test.jsonl"), *column]) == 2
    assert "no column 'nosuch'" in capsys.readouterr().err


def test_a_guard_whose_model_has_moved_is_told_where_it_is(place: Path, tmp_path: Path) -> None:
    content = json.loads((place / "guard" / "guard.json").read_text())
    content["manifest"]["model"] = str(tmp_path / "gone")
    moved = tmp_path / "guard"
    moved.mkdir()
    (moved / "guard.json").write_text(json.dumps(content))
    check = ["guard", "check", str(moved), str(place / "test.jsonl"), "--fail-on", "never"]
    assert main(check) == 2
    assert main([*check, "--model", str(place / "model")]) == 0


def test_evaluate_counts_a_flagged_clean_row_as_an_error_and_a_flagged_attack_as_none(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.json"
    words = ["evaluate", str(place / "model"), "--clean", str(place / "test.jsonl")]
    words += ["--triggered", str(place / "triggered.jsonl"), "--target-label", "1"]
    guard = tmp_path / "guard"
    content = json.loads((place / "guard" / "guard.json").read_text())
    content["threshold"]["value"] = -1.0  # flags everything
    guard.mkdir()
    (guard / "guard.json").write_text(json.dumps(content))
    assert main([*words, "--guard", str(guard), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["clean_accuracy"]["value"] == 0 and found["attack_success_rate"]["value"] == 0
    assert found["guard"]["clean_flag_rate"] == 1 and found["guard"]["triggered_flag_rate"] == 1
    assert 0 <= found["guard"]["auroc"] <= 1
    assert main([*words, "--json", str(out)]) == 0
    alone = json.loads(out.read_text())
    assert alone["guard"] is None and found["unguarded"]["clean_accuracy"] == alone["clean_accuracy"]
    assert "without the guard    clean accuracy" in capsys.readouterr().out


def test_evaluate_with_a_guard_and_no_triggered_rows_has_clean_numbers_only(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.json"
    words = ["evaluate", str(place / "model"), "--clean", str(place / "test.jsonl"), "--json", str(out)]
    assert main([*words, "--guard", str(place / "guard")]) == 0
    found = json.loads(out.read_text())
    assert found["guard"]["triggered_flag_rate"] is None and found["guard"]["auroc"] is None
    assert found["guard"]["clean_flag_rate"] <= 0.2 and found["attack_success_rate"] is None


def test_scan_data_by_psim_judges_rows_of_a_poisoned_models_task(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    words = ["scan", "data", str(place / "test.jsonl"), "--model", str(place / "model"), "--method", "psim"]
    words += ["--max-length", "16", *PSIM, "--json", str(out)]
    assert main([*words, "--clean", str(place / "clean.jsonl"), "--target-fpr", "0.05"]) in (0, 1)
    found = json.loads(out.read_text())
    assert found["method"] == "psim" and found["n"] == 60 == len(read_rows(place / "test.jsonl"))
    assert main(words) == 2  # no clean rows: nothing to learn from


def test_psim_can_be_cited(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "psim"]) == 0
    assert "2402.12168" in capsys.readouterr().out
