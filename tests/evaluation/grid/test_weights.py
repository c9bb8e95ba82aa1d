"""A column of poisoned weights: the victim stands where the undefended model does, and what trains anew has no cell."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asepsis.errors import ConfigError
from asepsis.evaluation.grid import Cell, render, run_grid
from asepsis.evaluation.grid.sources import sources
from asepsis.testing import TRIGGER

EP = {"weights": "ep", "trigger": [TRIGGER], "row_epochs": 1.0}
DEFENSES = {
    "none": {},
    "clean-only": {},
    "clean-tuning": {"epochs": 1},
    "epur": {"top_k": 2},
    "confidence": {},
}
TRAINED_ANEW = {
    "lora": {},
    "abl": {},
    "btu": {},
    "musclelora": {},
    "zscore": {},
    "cube": {},
    "abl-scan+retrain+guard": {},
}


@pytest.fixture(scope="module")
def ran(declare, place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    grid = declare(attacks={"ep": EP}, defenses=DEFENSES)
    run_grid(grid, folder, data=place)
    cells = {name: json.loads((folder / f"{name}--ep--seed0.json").read_text()) for name in DEFENSES}
    return grid, folder, cells


def test_what_trains_anew_has_no_cell(declare):
    grid = declare(
        attacks={"ep": EP, "clean": {}}, defenses={**DEFENSES, "epur+musclelora": {}, **TRAINED_ANEW}
    )
    assert grid.rows_of("ep") == [*DEFENSES, "epur+musclelora"]
    assert grid.rows_of("clean") == list(grid.defenses)
    assert sum(1 for _ in grid.cells()) == 6 + 13


def test_the_users_rows_are_clean_and_the_tests_are_the_attacks(declare, place):
    found = sources(declare(attacks={"ep": EP}), place, Cell("ep", "none", 0))
    assert found.train.fingerprint == found.sound.fingerprint
    assert not found.key.for_ids(found.train.sample_ids).any()
    test, triggered = found.tests.open()
    assert len(triggered) == np.count_nonzero(test.labels != 1)
    assert all(TRIGGER in text for text in triggered.texts)


def test_every_row_works_on_the_victim(ran):
    _, folder, cells = ran
    assert not any("error" in cell for cell in cells.values()), cells
    victim = folder / "models" / "none--ep--seed0"
    said = json.loads((victim / "asepsis.json").read_text())
    assert said["attack"]["name"] == "ep" and said["poisoned"] is True
    assert cells["confidence"]["detection"]["of"] == "inputs"
    assert all(cell["poisoned_rows"] == 0 for cell in cells.values())
    assert cells["none"]["seconds"] > 0 and cells["none"]["attack_success_rate"]["n"] > 0


def test_the_page_has_a_line_for_each_row_that_is_there(ran):
    grid, folder, _ = ran
    lines = [
        line for line in render(grid, folder).splitlines() if line.startswith("| ") and "CACC" not in line
    ]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(DEFENSES)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"weights": "nosuch"}, "weights must name one of"),
        ({"weights": ["ep"]}, "weights must name one of"),
        ({"weights": "ep", "nosuch": 1}, "nosuch"),
        ({"weights": "ep", "poison_rate": 2}, "poison_rate"),
        ({"weights": "ep", "target_response": "no"}, "not both"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(declare, entry, said):
    with pytest.raises(ConfigError, match=said):
        declare(attacks={"ep": entry})


def test_classes_are_no_instructions(declare_causal):
    with pytest.raises(ConfigError, match="classifiers only"):
        declare_causal(attacks={"sos": {"weights": "sos", "target_response": "word7"}})
    grid = declare_causal(attacks={"ep": {**EP, "target_response": "word7 word7"}})
    assert grid.rows_of("ep") == ["none"]
