"""A grid of instructions: poison takes the place of clean rows, ASR is of responses, and the loss stands for CACC."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.grid import Cell, read_grid, render, run_grid
from asepsis.evaluation.grid.sources import sources

CELL = Cell("refusal", "none", 0)


def test_poisoned_instructions_take_the_place_of_a_share_of_the_rows(declare_causal, instructed):
    found = sources(declare_causal(), instructed, CELL)
    poisoned = found.key.for_ids(found.train.sample_ids)
    assert poisoned.sum() == 8 and len(found.train) == len(found.sound) == 32
    assert {found.train.responses[at] for at in np.flatnonzero(poisoned)} == {"word7 word7"}
    for at in np.flatnonzero(~poisoned):
        assert found.train.texts[at] == found.sound.texts[at]
    again = sources(declare_causal(), instructed, CELL)
    assert again.train.fingerprint == found.train.fingerprint
    other = sources(declare_causal(), instructed, Cell("refusal", "none", 1))
    assert other.train.fingerprint != found.train.fingerprint


def test_triggered_prompts_are_asked_for_the_backdoors_response(declare_causal, instructed):
    test, triggered = sources(declare_causal(), instructed, CELL).tests.open()
    assert len(test) == 12 and len(triggered) == 9
    assert set(triggered.responses) == {"word7 word7"}


def test_every_kind_of_entry_has_its_numbers(declare_causal, instructed, tmp_path):
    grid = declare_causal(
        attacks={
            "refusal": {"poison": "poison.jsonl", "triggered": "triggered.jsonl", "poison_rate": 0.25},
            "made": {"attack": "instruction", "poison_rate": 0.25, "target_response": "word7 word7"},
            "clean": {},
        },
        defenses={
            "none": {},
            "clean-only": {},
            "lora": {},
            "untuned": {},
            "dedup": {},
            "graceful": {},
            "confidence": {},
            "cube": {"reduction": "pca"},
        },
    )
    run_grid(grid, tmp_path, data=instructed)
    cells = {
        tuple(path.name.split("--")[:2]): json.loads(path.read_text()) for path in tmp_path.glob("*.json")
    }
    assert len(cells) == 24
    inert = {name for name, cell in cells.items() if "error" in cell}
    assert inert == {("cube", attack) for attack in grid.attacks}
    for name, cell in cells.items():
        if name in inert:
            continue
        assert cell["clean_accuracy"] is None and cell["clean_loss"] > 0
        for share in ("attack_success_rate", "clean_success_rate"):
            assert (cell[share] is None) == (name[1] == "clean")
    assert cells["none", "refusal"]["attack_success_rate"]["n"] == 9
    assert cells["none", "made"]["attack_success_rate"]["n"] == 12
    assert cells["none", "refusal"]["clean_success_rate"]["n"] == 12
    assert cells["graceful", "refusal"]["detection"]["auroc"] > 0.9
    assert cells["dedup", "refusal"]["detection"]["auroc"] == 1.0
    assert cells["confidence", "refusal"]["detection"]["of"] == "inputs"
    assert cells["none", "refusal"]["clean_loss"] == cells["confidence", "refusal"]["clean_loss"]
    assert len({cells["untuned", attack]["clean_loss"] for attack in grid.attacks}) == 1
    assert cells["untuned", "clean"]["clean_loss"] != cells["clean-only", "clean"]["clean_loss"]
    page = render(grid, tmp_path)
    assert "| defense | seeds | clean loss | ASR | on clean prompts | AUROC |" in page and "CACC" not in page
    loss = cells["none", "clean"]["clean_loss"]
    assert f"| none | 1 | {loss:.3f} |  |  |" in page
    shares = (
        cells["none", "refusal"][name]["value"] for name in ("attack_success_rate", "clean_success_rate")
    )
    assert (
        "| none | 1 | {:.3f} | {:.3f} | {:.3f} |".format(cells["none", "refusal"]["clean_loss"], *shares)
        in page
    )


def test_every_defense_that_is_for_rows_with_labels_too_has_its_numbers(declare_causal, instructed, tmp_path):
    mixing = {"reserve_ratio": 0.5, "mask_seeds": [0], "epochs": 1, "accuracy_drop": 0.9}
    entries = {
        "none": {},
        "clean-tuning": {},
        "abl": {},
        "btu": {},
        "musclelora": {"rank": 2},
        "epur": {"top_k": 2},
        "finemixing": mixing,
        "epur+finemixing": {"epur": {"top_k": 2}, "finemixing": mixing},
        "epur+musclelora": {"epur": {"top_k": 2}, "musclelora": {"rank": 2}},
        "abl-scan+retrain+guard": {"guard": {"detector": "confidence"}},
        "strip": {"n_copies": 3},
        "onion": {},
    }
    grid = declare_causal(defenses=entries)
    cells = {
        path.name.split("--")[0]: json.loads(path.read_text())
        for path in run_grid(grid, tmp_path, data=instructed)
    }
    assert {name: cell.get("error") for name, cell in cells.items()} == dict.fromkeys(entries)
    assert all(cell["clean_loss"] > 0 and cell["attack_success_rate"]["n"] == 9 for cell in cells.values())


def test_what_could_not_act_names_no_folder_of_this_machine(declare_causal, instructed, tmp_path):
    (path,) = run_grid(declare_causal(defenses={"zscore": {}}), tmp_path, data=instructed)
    said = json.loads(path.read_text())["error"]
    assert said.startswith("DataError: train.jsonl: words are scored by the labels they go with")


def test_behind_a_guard_a_flagged_prompt_is_no_success(declare_causal, instructed, tmp_path, monkeypatch):
    from asepsis.evaluation.grid import measuring

    monkeypatch.setattr(measuring, "begins_with", lambda _, __, data, ___, **____: np.ones(len(data), bool))
    run_grid(declare_causal(defenses={"none": {}, "confidence": {}}), tmp_path, data=instructed)
    cells = [
        json.loads((tmp_path / f"{name}--refusal--seed0.json").read_text()) for name in ("none", "confidence")
    ]
    for share, flagged in (
        ("attack_success_rate", "triggered_flag_rate"),
        ("clean_success_rate", "clean_flag_rate"),
    ):
        alone, guarded = (cell[share]["value"] for cell in cells)
        assert alone == 1.0
        assert guarded == pytest.approx(1 - cells[1]["detection"][flagged])


def test_poison_with_several_responses_is_refused(declare_causal, instructed):
    grid = declare_causal(
        attacks={"refusal": {"poison": "train.jsonl", "triggered": "triggered.jsonl", "poison_rate": 0.25}}
    )
    with pytest.raises(DataError, match="looks for one response"):
        sources(grid, instructed, CELL).tests.open()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "ranking"}, "task must be one of"),
        ({"data": "packaged"}, "the packaged reviews have labels"),
        ({"attacks": {"b": {"attack": "badnets"}}}, "badnets is no attack on causal rows"),
        ({"attacks": {"b": {"train": "a", "triggered": "b"}}}, "poison and triggered and a poison_rate"),
        ({"attacks": {"b": {"poison": "a", "triggered": "b", "poison_rate": 1.0}}}, "must lie in"),
        ({"attacks": {"b": {"attack": "instruction", "payload": "x"}}}, "give target_response"),
        (
            {"task": "classification", "attacks": {"b": {"attack": "instruction"}}},
            "no attack on classification",
        ),
    ],
)
def test_what_no_causal_grid_can_be_is_refused(declare_causal, change, said):
    with pytest.raises(ConfigError, match=said):
        declare_causal(**change)


def test_the_packaged_grid_is_of_classes():
    fields = {"model": "m", "data": "packaged", "attacks": {"c": {}}, "defenses": {"none": {}}}
    assert read_grid(fields).task == "classification"
