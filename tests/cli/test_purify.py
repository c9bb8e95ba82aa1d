"""The command-line contract of purify, hostile files included."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asepsis.cli import main
from asepsis.data import write_rows
from asepsis.testing import tiny_classifier, tiny_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "victim")):
        model, tokenizer = tiny_classifier(seed)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    data = tiny_rows(40, 0)
    assert data.labels is not None
    pairs = zip(data.texts, data.labels.tolist(), strict=True)
    write_rows(tmp_path / "clean.jsonl", [{"text": t, "label": y} for t, y in pairs])
    (tmp_path / "counts.json").write_text(json.dumps({"word0": 5, "word1": 9}))
    return tmp_path


def run(folder: Path, *words: str, output: str = "out") -> int:
    start = ["purify", str(folder / "victim"), "--base", str(folder / "base"), "--output"]
    return main([*start, str(folder / output), "--counts", str(folder / "counts.json"), *words])


def clean(folder: Path) -> list[str]:
    return ["--clean", str(folder / "clean.jsonl"), "--max-length", "16"]


LOOSE = ["--set", "epochs=1", "--set", "accuracy_drop=0.9", "--reserve-ratio", "0.3"]


def test_purify_writes_a_checkpoint_that_evaluate_takes(folder: Path, capsys) -> None:
    assert run(folder, *clean(folder), *LOOSE, "--set", "epur.top_k=2") == 0
    said = capsys.readouterr().out
    assert "epur: reset 2 tokens ('" in said
    assert "finemixing: mixed, kept 0.3 of the weights; accuracy on 8 held-out clean rows" in said
    manifest = json.loads((folder / "out" / "asepsis.json").read_text())
    assert [d["config"].get("top_k", d["config"].get("reserve_ratio")) for d in manifest["defenses"]] == [
        2,
        0.3,
    ]
    assert main(["evaluate", str(folder / "out"), "--clean", str(folder / "clean.jsonl")]) == 0


def test_epur_alone_needs_no_rows(folder: Path) -> None:
    assert run(folder, "--defense", "epur", "--set", "top_k=3") == 0
    found = load_file(folder / "out" / "model.safetensors")
    victim = load_file(folder / "victim" / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    assert int((found[name] != victim[name]).any(1).sum()) == 3


def test_settings_come_from_a_file_by_defense_and_set_wins(folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_text("epur: {top_k: 4}\nfinemixing: {epochs: 1, reserve_ratio: 0.5, accuracy_drop: 0.9}\n")
    assert run(folder, *clean(folder), "--config", str(path), "--set", "finemixing.reserve_ratio=0.2") == 0
    first, second = json.loads((folder / "out" / "asepsis.json").read_text())["defenses"]
    assert first["config"]["top_k"] == 4
    assert (second["config"]["reserve_ratio"], second["config"]["epochs"]) == (0.2, 1)


def test_a_result_that_is_fine_tuning_and_no_more_exits_with_2(folder: Path, capsys) -> None:
    words = [
        "--set",
        "epochs=1",
        "--set",
        "search=ascending",
        "--set",
        "accuracy_drop=0.9",
        "--reserve-ratio",
        "1",
    ]
    assert run(folder, *clean(folder), "--defense", "finemixing", *words) == 2
    assert "unmixed" in capsys.readouterr().out
    assert (folder / "out" / "model.safetensors").exists()


def test_an_accuracy_that_is_lost_is_an_error_with_the_table_and_nothing_is_written(
    folder: Path, capsys
) -> None:
    # the victim's labels are right by construction, a learning rate of zero brings nothing back
    model, tokenizer = tiny_classifier(1)
    from asepsis.training import Settings, defend

    trained = defend(
        model,
        tiny_rows(200, 1),
        defense=None,
        processing_class=tokenizer,
        settings=Settings(device="cpu", precision="fp32", learning_rate=5e-3, batch_size=16, epochs=4),
    )
    trained.model.save_pretrained(folder / "victim")
    before = sorted(p.name for p in folder.iterdir())
    words = [
        "--set",
        "epochs=1",
        "--set",
        "search=ascending",
        "--set",
        "ratios=[0, 0.1]",
        "--set",
        "mask_seeds=[0]",
    ]
    assert run(folder, *clean(folder), "--defense", "finemixing", "--learning-rate", "1e-9", *words) == 2
    said = capsys.readouterr().err
    assert "no reserve ratio keeps what the model can do" in said
    assert "reached by ratio 0: " in said and ", 0.1: " in said
    assert sorted(p.name for p in folder.iterdir()) == before


def nan(victim: Path) -> None:
    found = load_file(victim / "model.safetensors")
    found["bert.pooler.dense.weight"][0, 0] = float("nan")
    found["bert.embeddings.word_embeddings.weight"][9, 0] = float("inf")
    save_file(found, victim / "model.safetensors", metadata={"format": "pt"})


def cut(victim: Path) -> None:
    file = victim / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lying_header(victim: Path) -> None:
    file = victim / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 62) + file.read_bytes()[8:])


def pickled(victim: Path) -> None:
    (victim / "model.safetensors").unlink()
    (victim / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")


def shard_outside(victim: Path) -> None:
    shutil.move(victim / "model.safetensors", victim.parent / "elsewhere.safetensors")
    index = {"weight_map": {"bert.pooler.dense.weight": "../elsewhere.safetensors"}}
    (victim / "model.safetensors.index.json").write_text(json.dumps(index))


def other_width(victim: Path) -> None:
    found = load_file(victim / "model.safetensors")
    save_file(
        {n: torch.zeros(*(2 * s for s in v.shape)) for n, v in found.items()},
        victim / "model.safetensors",
        metadata={"format": "pt"},
    )


def no_tokenizer(victim: Path) -> None:
    (victim / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nothing"}}')


def no_config(victim: Path) -> None:
    (victim / "config.json").write_text("[1, 2")


@pytest.mark.parametrize("defense", ["epur", "finemixing", "epur,finemixing"])
@pytest.mark.parametrize("attack", [nan, cut, lying_header, pickled, shard_outside, other_width, no_config])
def test_hostile_files_exit_with_2_in_a_line_and_nothing_is_written(
    folder: Path, capsys, attack, defense: str
) -> None:
    attack(folder / "victim")
    before = sorted(p.name for p in folder.iterdir())
    assert run(folder, *clean(folder), "--defense", defense) == 2
    said = capsys.readouterr().err
    assert "internal error" not in said
    assert "asepsis: error: " in said
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_tokenizer_that_cannot_be_read_stops_what_needs_tokens(folder: Path, capsys) -> None:
    no_tokenizer(folder / "victim")
    no_tokenizer(folder / "base")
    assert run(folder, "--defense", "epur") == 2
    assert "internal error" not in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--defense", "epur,nothing"], 4, "no defense is called 'nothing'"),
        (["--defense", "abl"], 2, "asepsis.defend"),
        (["--defense", "epur", "--set", "ratios=[0]"], 2, "none of epur has that field"),
        (["--defense", "epur", "--set", "finemixing.epochs=1"], 2, "none of epur has that field"),
        (["--defense", "epur", "--set", "top_k"], 4, "field=value"),
        (["--defense", "finemixing"], 2, "finemixing needs clean"),
        (["--defense", "epur", "--set", "top_k=0"], 2, "top_k must be at least 1"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(folder: Path, capsys, words, code: int, message: str) -> None:
    assert run(folder, *words) == code
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_folder_of_somebody_elses_stops_it_before_the_work(folder: Path, capsys) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("x")
    assert run(folder, "--defense", "epur") == 2
    assert "not written by asepsis" in capsys.readouterr().err
    assert [p.name for p in (folder / "out").iterdir()] == ["thesis.txt"]


def test_train_points_to_purify_for_defenses_of_weights(folder: Path, capsys) -> None:
    words = ["train", "--model", str(folder / "base"), "--data", str(folder / "clean.jsonl")]
    assert main([*words, "--defense", "epur", "--output", str(folder / "out")]) == 2
    assert "asepsis purify" in capsys.readouterr().err
