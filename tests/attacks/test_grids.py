"""Hostile grids and cells of ``asepsis bench defenses``, and what a defense says on its way into the table."""

from __future__ import annotations

import json

import pytest
from hostile.grids import CELL, CELLS, GRIDS, SOUND_CELL
from hostile.rows import SHOWN
from test_rows import check_inert
from test_weights import check_refused, knock

LINE = "bench defenses {folder}/grid.yaml --output {folder}/cells --render --table {out}"


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", [*GRIDS, *CELLS], ids=lambda case: case.name)
def test_a_hostile_grid_or_cell_is_refused(case, copied, tmp_path, denied, capsys):
    folder = copied("grid")
    case.make(folder)
    check_refused(case, LINE, capsys, tmp_path, denied, folder=folder)


def test_a_sound_grid_passes(copied, tmp_path, capsys):
    code, said = knock(LINE, capsys, folder=copied("grid"), out=tmp_path / "out")
    assert code == 0, said
    assert "0.900" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_defense_said_is_shown_by_codes(name, copied, tmp_path, capsys):
    folder = copied("grid")
    row = {key: SOUND_CELL[key] for key in ("attack", "defense", "seed", "declared")} | {"error": SHOWN[name]}
    (folder / CELL).write_text(json.dumps(row))
    assert knock(LINE, capsys, folder=folder, out=tmp_path / "out")[0] == 0
    page = (tmp_path / "out").read_text()
    check_inert(page)
    assert "<script" not in page.replace("`<script", "")
    assert json.loads((folder / CELL).read_text()) == row


def test_what_a_defense_said_steers_no_terminal(capsys):
    from asepsis.cli.bench_defenses import _say

    _say({"defense": "a", "attack": "b", "seed": 0, "error": "".join(SHOWN.values())}, 1.0)
    check_inert(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["../rows.jsonl", "/etc/passwd", "link.jsonl"])
def test_a_grid_reads_files_of_the_data_folder_only(name, tmp_path):
    from asepsis.errors import ConfigError
    from asepsis.evaluation.grid import read_grid
    from asepsis.evaluation.grid.sources import sources

    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 0}\n')
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    grid = read_grid(
        {
            "model": "m",
            "data": {"train": name, "dev": name, "test": "test.jsonl"},
            "attacks": {"clean": {}},
            "defenses": {"none": {}},
        }
    )
    with pytest.raises(ConfigError, match="does not lie in"):
        sources(grid, folder, next(iter(grid.cells())))
