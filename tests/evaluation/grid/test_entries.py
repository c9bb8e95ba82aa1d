"""Every kind of entry does its work, on what it is meant to work on."""

from __future__ import annotations

import json
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from asepsis.errors import ConfigError, DefenseInert, MissingDependency
from asepsis.evaluation.baselines import Found
from asepsis.evaluation.grid import run as running
from asepsis.evaluation.grid import run_grid
from asepsis.evaluation.grid.filters import train_without
from asepsis.testing import tiny_rows

ATTACK = {"badnets": {"attack": "badnets", "poison_rate": 0.2}}


def cells_of(folder):
    return {path.name.split("--")[0]: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_rows_are_filtered_pipelines_run_and_what_they_cost_is_counted(declare, place, tmp_path):
    grid = declare(
        attacks=ATTACK,
        defenses={
            "none": {},
            "cube": {"reduction": "pca", "density": 0.2, "dimensions": 3},
            "epur+musclelora": {"epur": {"top_k": 2}, "musclelora": {"reference_batch_size": 4}},
            "abl-scan+retrain+guard": {"guard": {"detector": "confidence"}},
        },
    )
    run_grid(grid, tmp_path, data=place)
    cells = cells_of(tmp_path)
    assert not any("error" in cell for cell in cells.values()), cells
    assert all(cell["attack_success_rate"]["n"] == 12 for cell in cells.values())
    assert cells["cube"]["detection"]["of"] == "training rows"
    assert cells["cube"]["detection"]["auroc"] is not None
    assert cells["cube"]["run"]["report"]["clusters"].keys() == {"0", "1"}
    assert cells["cube"]["seconds"] > cells["none"]["seconds"], "the encoder is part of the cost"
    first, second = cells["epur+musclelora"]["run"]["pipeline"]
    assert "epur" in first["report"] and second["defense"]["name"] == "musclelora"
    guarded = cells["abl-scan+retrain+guard"]
    assert guarded["detection"]["of"] == "inputs" and guarded["detection"]["tpr_at_1_fpr"] is not None
    assert guarded["detection_of_rows"]["of"] == "training rows"
    scan, trained, guard = guarded["run"]["pipeline"]
    assert scan["defense"]["name"] == "abl" and guard["detector"] == "confidence"
    assert trained["defense"]["name"] == "abl-scan+retrain+guard"
    told = json.dumps([cell["run"] for cell in cells.values()])
    assert f"{tempfile.gettempdir()}/" not in told, "a result names no folder of its machine"


def test_a_model_of_the_demo_is_named_without_the_folder_of_its_package(tmp_path):
    installed = Path(sysconfig.get_path("purelib")) / "a_package" / "model"
    told = running._told({"model": str(installed), "kept": str(tmp_path / "none")}, None, tmp_path)
    assert told == {"model": "a_package/model", "kept": "none"}


def test_cube_cannot_look_at_instructions_and_graceful_not_at_classes(declare, place, tmp_path):
    grid = declare(attacks=ATTACK, defenses={"graceful": {}})
    run_grid(grid, tmp_path, data=place)
    assert "these rows have labels" in cells_of(tmp_path)["graceful"]["error"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"abl+epur": {}}, "only defenses that repair weights, and after them one that trains"),
        ({"epur+abl+musclelora": {}}, "each train the model"),
        ({"epur+abl+finemixing": {}}, "cannot work"),
        ({"epur+finemixing": {"epur": 3}}, "a mapping for each"),
        (
            {"abl-scan+retrain+guard": {"detector": "psim"}},
            "a mapping for each of 'abl', 'guard', got 'detector'",
        ),
        ({"abl-scan+retrain+guard": {"guard": {"detector": "nosuch"}}}, "no detector 'nosuch'"),
        ({"cube": {"nosuch": 1}}, "CubeConfig has no field nosuch"),
        ({"graceful": {"share": 0.0}}, r"share must lie in \(0, 1\]"),
        ({"zscore": {"bar": "high"}}, "ZscoreConfig.bar must be float"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(declare, entry, said):
    with pytest.raises(ConfigError, match=said):
        declare(defenses=entry)


def test_a_missing_package_stops_the_grid_before_its_first_cell_and_is_no_result(
    declare, place, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    grid = declare(attacks=ATTACK, defenses={"none": {}, "cube": {"reduction": "pca"}})
    with pytest.raises(MissingDependency, match=r"asepsis\[baselines\]"):
        run_grid(grid, tmp_path, data=place)
    assert not cells_of(tmp_path)
    # a package that is found missing on the way is this machine's fault, not the defense's
    monkeypatch.setattr(running, "check_packages", lambda names: None)
    with pytest.raises(MissingDependency):
        run_grid(grid, tmp_path, data=place, defenses={"cube"})
    assert not cells_of(tmp_path)
    # what needs no package runs
    assert len(run_grid(grid, tmp_path, data=place, defenses={"none"})) == 1


def test_a_filter_that_leaves_no_row_is_an_error():
    site = SimpleNamespace(rows=SimpleNamespace(train=tiny_rows(4, 0)))
    found = Found(np.ones(4), np.ones(4, bool))
    with pytest.raises(DefenseInert, match="zscore throws out every row"):
        train_without(site, found, {"name": "zscore"})
