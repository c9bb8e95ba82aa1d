"""A plot shows every defense, the floor and nothing that was not measured; the same cells give the same bytes."""

from __future__ import annotations

import json
from xml.etree import ElementTree as Xml

import pytest

from asepsis.cli import main
from asepsis.evaluation.grid import Cell, plot_cells, render

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def cells(tmp_path, declare):
    grid = declare(seeds=[0, 1])

    def put(defense, attack, seed, accuracy, success):
        declared = grid.declared(Cell(attack, defense, seed))
        row = {"defense": defense, "attack": attack, "seed": seed, "declared": declared}
        row["clean_accuracy"] = {"value": accuracy}
        row["attack_success_rate"] = None if success is None else {"value": success}
        (tmp_path / f"{defense}--{attack}--seed{seed}.json").write_text(json.dumps(row))

    for seed in (0, 1):
        put("none", "badnets", seed, 0.9, 0.99 - 0.02 * seed)
        put("clean-only", "badnets", seed, 0.9, 0.1)
    put("none", "clean", 0, 0.9, None)
    inert = {"defense": "zscore", "attack": "badnets", "seed": 0, "error": "DefenseInert: no"}
    inert["declared"] = grid.declared(Cell("badnets", "zscore", 0))
    (tmp_path / "zscore--badnets--seed0.json").write_text(json.dumps(inert))
    return tmp_path


def test_a_plot_for_each_attack_that_was_run_names_every_defense(declare, cells):
    grid = declare(seeds=[0, 1])
    plots = plot_cells(grid, cells)
    assert list(plots) == ["badnets", "clean"], "nothing was run against `released`"
    root = Xml.fromstring(plots["badnets"])
    texts = ["".join(e.itertext()) for e in root.iter(f"{SVG}text")]
    assert [t for t in texts if t in grid.defenses] == list(grid.defenses)
    assert {"floor", "ASR", "CACC"} <= set(texts)
    assert "floor" not in plots["clean"]


def test_it_is_a_document_of_its_own_and_the_same_each_time(declare, cells):
    grid = declare(seeds=[0, 1])
    plot = plot_cells(grid, cells)["badnets"]
    assert plot == plot_cells(grid, cells)["badnets"]
    assert "var(--" not in plot and "#00000" not in plot and "aria-hidden" not in plot
    root = Xml.fromstring(plot)
    assert float(root.attrib["width"]) > 0 and root[0].tag == f"{SVG}title"
    assert root[1].attrib["fill"] == "#fcfcfb", "a ground, so that it is read on a dark page"


def test_a_causal_grid_draws_no_accuracy(declare_causal, tmp_path):
    grid = declare_causal()
    row = {
        "declared": grid.declared(Cell("refusal", "none", 0)),
        "clean_accuracy": None,
        "clean_loss": 2.5,
        "attack_success_rate": {"value": 0.5},
    }
    (tmp_path / "none--refusal--seed0.json").write_text(json.dumps(row))
    plot = plot_cells(grid, tmp_path)["refusal"]
    assert ">ASR<" in plot and "CACC<" not in plot


def test_the_page_shows_the_plots_beside_it(declare, cells):
    page = render(declare(seeds=[0, 1]), cells, plots={"badnets": "README-badnets.svg"})
    assert page.count("![") == 1 and "](README-badnets.svg)" in page


def test_the_command_writes_table_and_plots(declare, cells, tmp_path, capsys):
    declared = vars(declare())
    grid = {
        **declared,
        "attacks": {name: declared["attacks"][name] for name in ("badnets", "clean")},
        "defenses": {"none": {}, "clean-only": {}},
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    table = tmp_path / "page" / "table.md"
    table.parent.mkdir()
    words = ["--output", str(cells), "--render", "--table", str(table)]
    assert main(["bench", "defenses", str(tmp_path / "grid.yaml"), *words]) == 0
    names = {path.name for path in table.parent.iterdir()}
    assert names == {"table.md", "table-badnets.svg", "table-clean.svg"}
    assert "](table-badnets.svg)" in table.read_text() and "![" not in capsys.readouterr().out
