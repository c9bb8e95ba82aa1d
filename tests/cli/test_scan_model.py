"""The contract of ``asepsis scan model``: codes, JSON, and that nothing in a hostile folder acts or is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asepsis.cli import main

N, D = 1200, 16
WORDS = "model.embed_tokens.weight"
EVIL = "<script>alert(1)</script>\x1b]0;owned\x07\u202e"
TOKENS = ["[PAD]", *(f"w{i}" for i in range(N - 2)), EVIL]
TENSOR = "a\x1b[2J<img src=x>"


def weights(trigger: int | None = None, *, trained: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    words = (0.05 * rng.standard_normal((N, D))).astype(np.float32)
    noise = rng.standard_normal((700, D))
    steps = 0.01 * np.arange(4, 704) ** -0.125 * np.exp(0.1 * rng.uniform(-1, 1, 700))
    noise *= (steps / np.linalg.norm(noise, axis=1))[:, None]
    if trained:
        words[1:701] += noise.astype(np.float32)
    if trigger is not None:
        words[trigger] += 0.05
    return {WORDS: words, TENSOR: np.ones(2 if trained else 3, np.float32)}


@pytest.fixture
def models(model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    def make(trigger: int | None = None, *, trained: bool = True) -> list[str]:
        base = model_folder("base", weights(trained=False), tokens=TOKENS)
        folder = model_folder("tuned", weights(trigger, trained=trained), tokens=TOKENS)
        (tmp_path / "counts.json").write_text(json.dumps({f"w{i}": 1 + N // (i + 1) for i in range(N - 2)}))
        return ["scan", "model", str(folder), "--base", str(base), "--counts", str(tmp_path / "counts.json")]

    return make


def test_a_clean_model_exits_with_0_and_promises_nothing(models, capsys) -> None:
    assert main(models()) == 0
    out = capsys.readouterr().out
    assert out.startswith("clean: No embedding anomaly. That is not proof")


def test_a_trigger_exits_with_1_and_is_in_the_contracts_json(models, tmp_path, capsys) -> None:
    out = tmp_path / "scan.json"
    assert main([*models(900), "--json", str(out), "--top", "3"]) == 1
    content = json.loads(out.read_text())
    assert content["verdict"] == "suspicious"
    assert content["tokens"][0].keys() >= {"token", "id", "drift", "expected", "z", "verdict"}
    assert (content["tokens"][0]["id"], content["tokens"][0]["verdict"]) == (900, "high")
    assert len(content["tokens"]) >= 1 and content["tensors"]
    assert "'w899'" in capsys.readouterr().out


def test_fail_on_decides_about_findings_and_not_about_the_undecided(models) -> None:
    assert main([*models(900), "--fail-on", "never"]) == 0
    assert main([*models(900), "--fail-on", "elevated"]) == 1
    assert main([*models(trained=False), "--fail-on", "never"]) == 2


def test_no_evidence_exits_with_2(models, capsys) -> None:
    assert main(models(trained=False)) == 2
    assert capsys.readouterr().out.startswith("inconclusive: No evidence")


def test_no_common_token_exits_with_3(models, model_folder, capsys) -> None:
    line = models()
    model_folder("tuned", weights(), tokens=[f"x{i}" for i in range(N)], special=["x0"])
    assert main(line) == 3
    assert "nothing to scan" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [["--top", "-1"], ["--fail-on", "maybe"], ["--corpus", "x.txt"], ["--unknown"]],
)
def test_a_wrong_line_exits_with_4(models, more) -> None:
    assert main([*models(), *more]) == 4


def test_a_base_is_required(models) -> None:
    assert main(models()[:3]) == 4


@pytest.mark.parametrize("kind", ["pickle", "truncated", "missing", "nan", "quantized", "folder"])
def test_a_model_that_cannot_be_judged_exits_with_2_and_writes_nothing(
    models, model_folder, tmp_path, capsys, kind
) -> None:
    line = models()
    file = tmp_path / "tuned" / "model.safetensors"
    if kind == "pickle":
        file.rename(file.with_name("pytorch_model.bin"))
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    elif kind == "missing":
        file.unlink()
    elif kind == "nan":
        broken = weights()
        broken[TENSOR][0] = np.nan
        model_folder("tuned", broken, tokens=TOKENS)
    elif kind == "quantized":
        model_folder("tuned", weights(), tokens=TOKENS, config={"quantization_config": {"bits": 4}})
    else:
        line[2] = str(tmp_path / "nowhere")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    out, page = tmp_path / "scan.json", tmp_path / "scan.html"
    assert main([*line, "--json", str(out), "--html", str(page)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("asepsis: error: ") and "Traceback" not in err and "\x1b" not in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_names_of_an_attacker_cannot_act_in_terminal_or_report(models, tmp_path, capsys) -> None:
    page = tmp_path / "scan.html"
    assert main([*models(N - 1), "--html", str(page)]) == 1
    out, html = capsys.readouterr().out, page.read_text()
    for text in (out, html):
        assert not set("\x1b\x07\u202e") & set(text)
    assert "&lt;script&gt;" in html and "\\x1b]0;owned" in html
    assert not re.search(r"<\s*(script|img|link|iframe|object|embed|form|a)\b", html, re.I)
    assert "default-src 'none'" in html
    assert html.count("<table") >= 3


@pytest.mark.parametrize("name", ["clean.txt", "clean.jsonl"])
def test_a_corpus_gives_the_frequencies(models, tmp_path, name, capsys) -> None:
    corpus = tmp_path / name
    rows = ["w1 w2 w1", "w3"]
    text = (
        "\n".join(rows)
        if name.endswith("txt")
        else "\n".join(json.dumps({"text": r, "label": 0}) for r in rows)
    )
    corpus.write_text(text + "\n")
    line = models(900)[:5]
    assert main([*line, "--corpus", str(corpus)]) == 1
    assert "clean corpus of 2 texts" in capsys.readouterr().out


def test_a_file_cannot_go_where_there_is_no_folder(models, tmp_path) -> None:
    assert main([*models(), "--json", str(tmp_path / "no" / "scan.json")]) == 2


@pytest.mark.demo
def test_the_packaged_model_against_itself_is_no_evidence(capsys) -> None:
    assert main(["scan", "model", "demo:encoder", "--base", "demo:encoder"]) == 2
    assert "No evidence" in capsys.readouterr().out
