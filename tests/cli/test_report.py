"""``asepsis report`` of what the other verbs really wrote, on a tiny model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from asepsis.cli import main
from asepsis.data import write_rows
from asepsis.testing import tiny_classifier, tiny_rows

QUICK = ["--max-length", "16", "--batch-size", "8"]
ABL = ["--set", "snapshots=[2,4]", "--set", "grow_steps=2"]
DROP = ["--set", "drop_ratio=0.2"]
EVIL = "\x1b]0;owned\x07\u202e <script>alert(1)</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows and a key, in which an attacker has written."""
    folder = tmp_path_factory.mktemp("reported")
    network, tokenizer = tiny_classifier(0)
    network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    data = tiny_rows(60, 0)
    assert data.labels is not None
    pairs = zip(data.texts, data.labels.tolist(), strict=True)
    rows = [{"text": f"{t} {EVIL}" if i < 30 else t, "label": y} for i, (t, y) in enumerate(pairs)]
    write_rows(folder / "rows.jsonl", rows)
    key = [json.dumps({"row": at, "poisoned": int(at < 5)}) for at in range(60)]
    (folder / "key.jsonl").write_text("\n".join(key) + "\n")
    return folder


def harmless(text: str) -> bool:
    spans = re.sub(r"`[^`\n]*`", "", text)  # in Markdown a span shows what it holds
    return not set("\x1b\x07\u202e") & set(text) and "<script" not in spans


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    words = ["train", "--model", str(place / "model"), "--data", str(place / "rows.jsonl"), "--output"]
    assert (
        main([*words, str(place / "out"), "--defense", "abl", "--max-steps", "3", *QUICK, *ABL, *DROP]) == 0
    )
    return place / "out"


def test_a_training_becomes_a_page_markdown_and_sarif(trained: Path, tmp_path: Path, capsys) -> None:
    outputs = {name: tmp_path / f"r.{name}" for name in ("html", "markdown", "sarif")}
    words = [part for name, path in outputs.items() for part in (f"--{name}", str(path))]
    assert main(["report", str(trained), *words]) == 0
    assert capsys.readouterr().out.count("wrote ") == 3
    page, text = outputs["html"].read_text(), outputs["markdown"].read_text()
    assert harmless(page) and harmless(text)
    for wanted in ("Training with abl", "Loss trajectories", "Scores and threshold", "optimizer steps"):
        assert wanted in page
    results = json.loads(outputs["sarif"].read_text())["runs"][0]["results"]
    flagged = [json.loads(line)["flagged"] for line in (trained / "asepsis_rows.jsonl").open()]
    assert len(results) == sum(flagged) == 12
    assert main(["verify", str(trained)]) == 0


def test_without_an_output_the_markdown_is_printed_and_cannot_command_a_terminal(
    trained: Path, capsys
) -> None:
    assert main(["report", str(trained)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## asepsis: Training with abl\n") and harmless(out)


def test_a_training_that_was_exported_leaves_its_rows_behind(trained: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained), "-o", str(tmp_path / "plain")]) == 0
    assert not [path.name for path in (tmp_path / "plain").iterdir() if path.name.startswith("asepsis")]


def test_evaluations_and_a_key_fill_the_control_table_and_the_curve(
    place: Path, trained: Path, tmp_path: Path
) -> None:
    numbers, page = tmp_path / "e.json", tmp_path / "r.html"
    clean = ["--clean", str(place / "rows.jsonl"), "--json", str(numbers)]
    assert main(["evaluate", str(trained), *clean]) == 0
    more = ["--evaluation", str(numbers), "--key", str(place / "key.jsonl"), "--html", str(page)]
    assert main(["report", str(trained), *more]) == 0
    assert "Beside its controls" in page.read_text() and "AUROC" in page.read_text()


def test_a_scan_keeps_a_folder_whose_page_is_the_one_it_wrote_itself(place: Path, tmp_path: Path) -> None:
    out, first, second = tmp_path / "found", tmp_path / "1.html", tmp_path / "2.html"
    words = ["scan", "data", str(place / "rows.jsonl"), "--model", str(place / "model"), *QUICK, *ABL]
    words += ["--key", str(place / "key.jsonl"), "--output", str(out), "--html", str(first)]
    assert main(words) in (0, 1, 2)
    assert main(["report", str(out), "--html", str(second)]) == 0
    assert first.read_text() == second.read_text()
    assert "ROC curve" in second.read_text() and harmless(second.read_text())
    assert main(["verify", str(out)]) == 0


def test_scans_with_clean_rows_draw_the_scanned_rows_alone(place: Path, tmp_path: Path) -> None:
    from asepsis.core.evidence import read_evidence

    out = tmp_path / "found"
    words = ["scan", "data", str(place / "rows.jsonl"), "--model", str(place / "model"), *QUICK, *ABL]
    words += ["--clean", str(place / "rows.jsonl"), "--target-fpr", "0.1", "--output", str(out)]
    assert main(words) in (0, 1)
    assert read_evidence(out)["loss.values"].shape == (3, 60)
    assert main(["report", str(out)]) == 0


def test_a_scan_of_a_model_and_its_repair_are_reported(
    place: Path, trained: Path, tmp_path: Path, capsys
) -> None:
    found, fixed = tmp_path / "drift", tmp_path / "fixed"
    base = ["--base", str(place / "model")]
    assert main(["scan", "model", str(trained), *base, "--output", str(found), "--fail-on", "never"]) in (
        0,
        2,
    )
    assert main(["purify", str(trained), *base, "--defense", "epur", "--output", str(fixed)]) == 0
    capsys.readouterr()
    for folder, title in ((found, "Model scan"), (fixed, "Repair by epur")):
        page = tmp_path / "r.html"
        assert main(["report", str(folder), "--html", str(page)]) == 0
        assert title in page.read_text() and "Embedding drift" in page.read_text()


def test_a_guard_and_what_it_checked_are_reported(place: Path, tmp_path: Path) -> None:
    guard, found, page = tmp_path / "guard", tmp_path / "found", tmp_path / "r.html"
    rows = str(place / "rows.jsonl")
    fit = [
        "guard",
        "fit",
        str(place / "model"),
        "--clean",
        rows,
        "--output",
        str(guard),
        "--target-fpr",
        "0.1",
    ]
    assert main([*fit, "--detector", "confidence"]) == 0
    assert main(["report", str(guard), "--html", str(page)]) == 0
    assert "Guard by confidence" in page.read_text()
    check = ["guard", "check", str(guard), rows, "--output", str(found), "--fail-on", "never"]
    assert main(check) == 0
    assert main(["report", str(found), "--html", str(page), "--key", str(place / "key.jsonl")]) == 0
    assert "Inputs checked by confidence" in page.read_text() and "ROC curve" in page.read_text()
    assert main(check) == 0  # its own folder is replaced, another's is not
    check[check.index("--output") + 1] = str(place / "model")
    assert main(check) == 2


def test_what_is_wrong_is_told_before_the_work(place: Path, trained: Path, tmp_path: Path, capsys) -> None:
    scan = ["scan", "data", str(place / "rows.jsonl"), "--model", "/no/model"]
    assert main([*scan, "--output", str(place / "model")]) == 2
    assert "name another folder" in capsys.readouterr().err
    before = sorted(path.name for path in trained.iterdir())
    assert main([*scan, "--output", str(trained)]) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert sorted(path.name for path in trained.iterdir()) == before
    assert main(["report", str(place / "model")]) == 2
    assert "was not written by asepsis" in capsys.readouterr().err
    assert main(["report", str(trained), "--html", str(tmp_path / "no" / "r.html")]) == 2
    assert main(["report"]) == 4


def test_a_page_without_matplotlib_names_the_extra_before_the_work(
    place: Path, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for words in (
        ["report", str(trained)],
        ["scan", "data", str(place / "rows.jsonl"), "--model", "/no/model"],
        ["scan", "model", "/no/model", "--base", "/no/base"],
    ):
        assert main([*words, "--html", str(tmp_path / "r.html")]) == 2
        assert "pip install 'asepsis[report]'" in capsys.readouterr().err
    assert main(["report", str(trained), "--markdown", str(tmp_path / "r.md")]) == 0


def test_a_demo_is_not_written_over_something_else(tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "holds no demo" in capsys.readouterr().err


@pytest.mark.demo
def test_the_demo_writes_a_folder_that_is_whole_and_is_reported_again(
    place: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from asepsis import AblConfig, Settings
    from asepsis.cli import demo
    from asepsis.evaluation import harness

    real, out, page = harness.run_case, tmp_path / "demo", tmp_path / "r.html"

    def small(case, defenses, *, model, settings, **rest):
        quick = Settings(max_steps=3, max_length=16, batch_size=8, device="cpu")
        chosen = [AblConfig(snapshots=(2, 4), grow_steps=2, drop_ratio=0.1)]
        return real(case, chosen, model=str(place / "model"), settings=quick, **rest)

    monkeypatch.setattr(harness, "run_case", small)
    monkeypatch.setattr(demo, "_TRAIN_ROWS", 60)
    monkeypatch.setattr(demo, "_TEST_ROWS", 20)
    for _ in range(2):  # an earlier demo is replaced
        assert main(["demo", "--output", str(out)]) == 0
    content = json.loads((out / "demo.json").read_text())
    assert [row["defense"] for row in content["rows"]] == ["none", "clean-only", "abl"]
    assert main(["verify", str(out)]) == 0
    assert main(["report", str(out), "--html", str(page)]) == 0
    assert page.read_text() == (out / "report.html").read_text()
    assert "Undefended, the trigger works on" in page.read_text() and "ROC curve" in page.read_text()
