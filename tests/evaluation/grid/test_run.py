"""Cells train with what a defender has, open the tests once, and are not run twice."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from asepsis.errors import CheckpointError, ConfigError, DataError, ModelError
from asepsis.evaluation.grid import Cell, render, run_grid
from asepsis.evaluation.grid import run as running
from asepsis.evaluation.grid.sources import drawn, sources
from asepsis.evaluation.grid.table import read_cells

SETTINGS = {"max_steps": 3, "batch_size": 8, "device": "cpu", "precision": "fp32", "max_length": 32}


def test_every_cell_has_its_numbers_and_is_not_run_again(declare, place, tmp_path, monkeypatch):
    grid, told = declare(), []
    written = run_grid(grid, tmp_path, data=place, on_cell=lambda row, _: told.append(row))
    assert len(written) == len(told) == 9
    cells = {(row["attack"], row["defense"]): row for row in told}
    assert cells["badnets", "none"]["attack_success_rate"]["n"] == 12
    assert cells["released", "none"]["attack_success_rate"]["n"] == 10
    assert cells["clean", "none"]["attack_success_rate"] is None
    assert [cells[a, "none"]["poisoned_rows"] for a in ("badnets", "clean")] == [10, 0]
    assert cells["badnets", "zscore"]["detection"]["of"] == "training rows"
    assert cells["badnets", "none"]["detection"] is None
    # one clean-only model answers every attack's rows
    same = [cells[attack, "clean-only"]["clean_accuracy"] for attack in grid.attacks]
    assert same[0] == same[1] == same[2]
    assert not any(str(place) in path.read_text().replace(str(place / "model"), "") for path in written)
    monkeypatch.setattr(running, "_measured", lambda *_: pytest.fail("ran again"))
    assert run_grid(grid, tmp_path, data=place) == []


def test_only_what_is_asked_for_is_run_and_the_rest_is_counted_as_blank(declare, place, tmp_path):
    grid = declare()
    run_grid(grid, tmp_path, data=place, attacks={"badnets"}, defenses={"none"})
    assert [path.name for path in tmp_path.glob("*.json")] == ["none--badnets--seed0.json"]
    page = render(grid, tmp_path)
    assert page.startswith("1 of 9 cells were run; 8 are blank; in 0 the defense could not act.")
    assert "| zscore |  |  |  |" in page
    assert page.count("No cell of it was run.") == 2, "of the two other attacks"


def test_a_defense_that_cannot_act_is_a_result(declare, place, tmp_path):
    grid = declare(defenses={"none": {}, "zscore": {"bar": -100.0}}, attacks={"clean": {}})
    run_grid(grid, tmp_path, data=place)
    row = json.loads((tmp_path / "zscore--clean--seed0.json").read_text())
    assert row["error"].startswith("DefenseInert: zscore throws out every row")
    page = render(grid, tmp_path)
    assert "in 1 the defense could not act" in page and "0 (1 could not act)" in page
    assert "* zscore on clean: DefenseInert" in page


def test_weights_are_repaired_and_guards_fitted_on_the_undefended_model(declare, place, tmp_path):
    grid = declare(
        defenses={"epur": {"top_k": 2}, "confidence": {}, "clean-tuning": {"epochs": 1}, "lora": {}},
        attacks={"badnets": {"attack": "badnets", "poison_rate": 0.2}},
        settings={**SETTINGS, "max_steps": None, "epochs": 1},
    )
    run_grid(grid, tmp_path, data=place)
    cells = {path.name.split("--")[0]: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(cells) == set(grid.defenses)
    assert not any("error" in cell for cell in cells.values()), cells
    assert cells["confidence"]["detection"]["of"] == "inputs"
    assert cells["confidence"]["detection"]["auroc"] is not None
    # made once, for all four that start from it
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["none--badnets--seed0"]
    assert "0.5 x" in (page := render(grid, tmp_path)) or "(i)" in page


def test_an_entry_with_fewer_rows_gets_the_first_and_the_page_says_so(declare, place, tmp_path):
    few = {"clean_rows": 25, "test_rows": 7}
    grid = declare(defenses={"none": {}, "confidence": few}, attacks={"clean": {}})
    run_grid(grid, tmp_path, data=place)
    cells = {
        name: json.loads((tmp_path / f"{name}--clean--seed0.json").read_text()) for name in grid.defenses
    }
    assert cells["confidence"]["clean_accuracy"]["n"] == 7 < cells["none"]["clean_accuracy"]["n"]
    assert cells["confidence"]["run"]["data"]["rows"] == 25
    assert cells["confidence"]["declared"]["defense"] == {"kind": "confidence", **few}
    page = render(grid, tmp_path)
    assert "`confidence` has fewer rows than the others: 25 trusted rows, the first 7 of the clean" in page


OTHERS = {
    "defense": {"defenses": {"none": {}, "clean-only": {}, "zscore": {"bar": 3.0}}},
    "attack": {"attacks": {"badnets": {"attack": "badnets", "poison_rate": 0.1}}},
    "rows": {"rows": 40},
    "clean_rows": {"clean_rows": 30},
    "test_rows": {"test_rows": 5},
    "settings": {"settings": {**SETTINGS, "max_steps": 2}},
    "target_label": {"target_label": 0},
    "data": {"data": {"train": "dev.jsonl", "dev": "train.jsonl", "test": "test.jsonl"}},
    "model": {"model": "demo:encoder"},
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_cell_of_another_grid_is_not_taken_for_this_ones(field, declare, place, tmp_path):
    badnets = {"attacks": {"badnets": {"attack": "badnets", "poison_rate": 0.2}}}
    grid, other = declare(**badnets), declare(**{**badnets, **OTHERS[field]})
    cell = Cell("badnets", "zscore", 0)
    row = {"declared": grid.declared(cell), "error": "DefenseInert: no"}
    (tmp_path / cell.file).write_text(json.dumps(row))
    assert list(read_cells(grid, tmp_path)) == [cell]
    for read in (lambda: run_grid(other, tmp_path, data=place), lambda: render(other, tmp_path)):
        with pytest.raises(
            CheckpointError, match=rf"zscore--badnets--seed0.json was run with '{field}' .* grid declares"
        ):
            read()


def test_a_deleted_cell_is_run_again_and_more_attacks_and_seeds_leave_the_others(declare, place, tmp_path):
    clean = {"clean": {}}
    run_grid(declare(defenses={"none": {}, "zscore": {"bar": 2.0}}, attacks=clean), tmp_path, data=place)
    (tmp_path / "zscore--clean--seed0.json").unlink()
    other = declare(defenses={"none": {}, "zscore": {"bar": 3.0}}, attacks=clean, seeds=[0, 1])
    written = [path.name for path in run_grid(other, tmp_path, data=place, seeds={0})]
    assert written == ["zscore--clean--seed0.json"]


def test_a_kept_model_of_another_grid_starts_nothing(declare, place, tmp_path):
    models, entries = tmp_path / "models", {"none": {}, "clean-only": {}}
    options = {"data": place, "models": models, "attacks": {"clean"}}
    run_grid(declare(defenses=entries), tmp_path / "one", **options)
    fewer = declare(defenses=entries, clean_rows=30)  # which neither has seen
    assert len(run_grid(fewer, tmp_path / "two", **options)) == 2
    for name in entries:
        other = declare(defenses={name: {}}, rows=40)
        with pytest.raises(CheckpointError, match=r"spent.json was run with 'rows' 48, .* declares 40"):
            run_grid(other, tmp_path / "three", **options)


def test_what_is_wrong_with_the_grid_is_no_result_of_a_defense(declare, place, tmp_path):
    # the same mistake under a control, a training and a repair
    for name in ("none", "clean-only", "abl", "epur"):
        grid = declare(model=str(place / "nowhere"), defenses={name: {}}, attacks={"clean": {}})
        with pytest.raises(ModelError):
            run_grid(grid, tmp_path / "cells", data=place)
    assert not list((tmp_path / "cells").glob("*.json"))


def test_the_tests_are_opened_once(declare, place):
    found = sources(declare(), place, Cell("badnets", "none", 0))
    test, triggered = found.tests.open()
    assert triggered is not None and len(test) == 24
    with pytest.raises(DataError, match="opened before"):
        found.tests.open()


def test_training_reads_no_test_file(declare, place, tmp_path, monkeypatch):
    opened = []
    real = running.sources

    def watched(*arguments):
        found = real(*arguments)
        monkeypatch.setattr(
            found.tests, "open", lambda: opened.append(1) or pytest.fail("opened while training")
        )
        return found

    monkeypatch.setattr(running, "sources", watched)
    monkeypatch.setattr(running, "numbers", lambda *_, **__: {})
    entries = {
        "none": {},
        "clean-only": {},
        "clean-tuning": {},
        "zscore": {"bar": 2.0},
        "abl": {},
        "epur": {"top_k": 2},
        "confidence": {},
        "epur+musclelora": {"epur": {"top_k": 2}},
    }
    run_grid(declare(defenses=entries), tmp_path, data=place, attacks={"badnets"})
    assert opened == [] and len(list(tmp_path.glob("*.json"))) == len(entries)


def test_a_file_that_is_trained_on_is_no_test_file(declare):
    files = {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
    with pytest.raises(ConfigError, match="is a test file"):
        declare(data={**files, "train": "below/../test.jsonl"})
    with pytest.raises(ConfigError, match="badnets"):
        declare(attacks={"badnets": {"attack": "badnets", "train": 5}})
    for part in ("train", "dev"):
        with pytest.raises(ConfigError, match=r"^data: './test\.jsonl' is a test file"):
            declare(data={**files, "test": "./test.jsonl", part: "test.jsonl"})
    with pytest.raises(ConfigError, match=r"^attacks: released: 'released\.jsonl' is a test file"):
        declare(attacks={"released": {"train": "released.jsonl", "triggered": "released.jsonl"}})


def test_no_trusted_row_is_a_training_row(declare, place, tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text((place / name).read_text())
    seen = [json.loads(line) for line in (place / "train.jsonl").open()]
    fresh = [json.loads(line) for line in (place / "dev.jsonl").open()][:30]
    with (tmp_path / "dev.jsonl").open("w") as out:
        for row in [*fresh, *seen]:
            out.write(json.dumps({**row, "text": f" {row['text'].upper()}  "}) + "\n")
    found = sources(declare(clean_rows=30), tmp_path, Cell("badnets", "none", 0))
    trained = {" ".join(text.split()) for text in (*found.train.texts, *found.sound.texts)}
    assert len(found.clean) == 30
    assert not trained & {" ".join(text.split()).lower() for text in found.clean.texts}
    # 60 training rows, 48 of them drawn: 12 of dev's are left beside its own 30
    with pytest.raises(ConfigError, match=r"43 rows are to be drawn, and there are 42 of 90: the others are"):
        sources(declare(clean_rows=43), tmp_path, Cell("badnets", "none", 0))


def test_files_without_a_folder_and_too_few_rows_are_refused(declare, place):
    with pytest.raises(ConfigError, match="--data FOLDER"):
        sources(declare(), None, Cell("badnets", "none", 0))
    with pytest.raises(ConfigError, match="100 rows are to be drawn, and there are 60"):
        sources(declare(rows=100), place, Cell("badnets", "none", 0))


def test_a_seed_draws_the_same_rows_again():
    assert drawn(50, 10, 3).tolist() == drawn(50, 10, 3).tolist() != drawn(50, 10, 4).tolist()


_PEAKS = """
import numpy as np
from asepsis.evaluation.grid.memory import Peak

def work():
    # 80 MB in pieces that the allocator would keep
    return sum(float(np.ones(2500).sum()) for _ in range(2)) + len([np.ones(2500) for _ in range(4000)])

peaks = []
for _ in range(2):
    with Peak() as peak:
        work()
    peaks.append(peak.bytes)
    kept = [np.ones(2500) for _ in range(20_000)]  # 400 MB, gone again
    del kept
with Peak() as nothing:
    pass
print(*peaks, nothing.bytes)
"""


def test_the_peak_is_of_the_work_inside_whatever_came_before():
    import torch

    if torch.cuda.is_available():
        pytest.skip("measures the GPU here")
    # in a process of its own: pages that other tests' objects pin are not given back, and the work would fit into their holes
    told = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True)
    *peaks, nothing = map(int, told.stdout.split())
    assert len(peaks) == 2 and all(70e6 < size < 110e6 for size in peaks), peaks
    assert nothing < 20e6
