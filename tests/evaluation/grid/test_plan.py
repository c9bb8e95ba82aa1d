"""A grid is checked whole before anything runs."""

from __future__ import annotations

import pytest

from asepsis.errors import ConfigError
from asepsis.evaluation.grid import Cell, read_grid

WHOLE = {
    "model": "demo:encoder",
    "data": "packaged",
    "attacks": {"badnets": {"attack": "badnets"}, "clean": {}},
    "defenses": {"none": {}, "abl": {}, "epur+finemixing": {"finemixing": {"reserve_ratio": 0.3}}},
    "seeds": [0, 1],
}


def test_a_grid_is_every_attack_with_every_defense_and_seed():
    cells = list(read_grid(WHOLE).cells())
    assert len(cells) == len(set(cells)) == 12
    assert cells[0] == Cell("badnets", "none", 0)
    assert cells[2].file == "epur+finemixing--badnets--seed0.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nosuch": 1}, "no field 'nosuch'"),
        ({"data": {"train": "a"}}, "data must be"),
        ({"attacks": {}}, "attacks must name"),
        ({"attacks": {"b": {"attack": "nosuch"}}}, "or an attack: one of"),
        ({"attacks": {"b": {"train": "only.jsonl"}}}, "files train and triggered"),
        ({"defenses": {"../x": {}}}, "no name"),
        ({"defenses": {"nosuch": {}}}, "no kind 'nosuch'"),
        ({"defenses": {"abl": {"nosuch": 1}}}, "AblConfig has no field nosuch"),
        ({"defenses": {"abl+epur": {}}}, "only defenses that repair"),
        ({"defenses": {"epur+finemixing": {"ratio": 1}}}, "a mapping for each"),
        ({"defenses": {"none": {"epochs": 1}}}, "none has no field 'epochs'"),
        ({"defenses": {"abl": 3}}, "must be a mapping"),
        ({"defenses": {"onion": {"clean_rows": 437}}}, r"clean_rows must lie in 1\.\.436"),
        ({"test_rows": 9, "defenses": {"onion": {"test_rows": 10}}}, r"test_rows must lie in 1\.\.9"),
        ({"defenses": {"onion": {"test_rows": 0}}}, "test_rows must lie in 1"),
        ({"defenses": {"onion": {"rows": 10}}}, "OnionConfig has no field rows"),
        ({"seeds": [0, 0]}, "different numbers"),
        ({"seeds": []}, "different numbers"),
        ({"rows": 0}, "rows must be"),
        ({"settings": {"seed": 1}}, "the seed is the grid's"),
        ({"settings": {"nosuch": 1}}, "settings"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(change, said):
    with pytest.raises(ConfigError, match=said):
        read_grid({**WHOLE, **change})


def test_a_slow_entry_may_have_fewer_rows():
    grid = read_grid({**WHOLE, "defenses": {"onion": {"clean_rows": 100, "test_rows": 60}, "rap": {}}})
    assert (grid.clean_rows_of("onion"), grid.test_rows_of("onion")) == (100, 60)
    assert (grid.clean_rows_of("rap"), grid.test_rows_of("rap")) == (436, 0)


def test_a_file_is_read_as_yaml_and_one_that_is_none_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("model: m\ndata: packaged\nattacks: {clean: {}}\ndefenses: {none: {}}\n")
    assert read_grid(path).seeds == (0, 1, 2)
    for wrong, said in (
        ("- a\n", "a mapping of fields"),
        ("a: [", "cannot be read"),
        ("model: m\n", "needs 'data'"),
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=said):
            read_grid(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_grid(tmp_path / "absent.yaml")


def test_the_grids_of_the_tree_can_be_run(pytestconfig):
    found = sorted((pytestconfig.rootpath / "benches" / "grids").glob("*.yaml"))
    assert [path.stem for path in found] == ["agnews", "instruct", "small", "sst2"]
    for path in found:
        grid = read_grid(path)
        assert list(grid.defenses)[:2] == ["none", "clean-only"]
        assert "clean" in grid.attacks
