"""What a GPU run leaves behind: a page and a picture that say what was found, missed and wrong; races that are seen."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benches.gpu import races, report  # noqa: E402

ABOUT = {"device": "NVIDIA H200", "date": "2026-11-21", "commit": "abc1234", "torch": "2.11"}


def ratio(goal, found, wanted, met):
    return {
        "goal": goal,
        "mode": "eager",
        "of": "loop",
        "to": "ours",
        "ratio": found,
        "wanted": wanted,
        "met": met,
    }


def results():
    sides = {"eager": {"ours": {"median_us": 10.0}, "loop": {"median_us": 25.0}}}
    ratios = [ratio("G1", 2.5, "at least 2", True), ratio("G6", 1.5, "at most 1.2", False)]
    rows = [
        {"name": "layer 1 < 2", "sides": sides, "ratios": ratios},
        {"name": "memory", "values": {"bytes": 3}},
        {"name": "broken", "error": "RuntimeError: a | b"},
    ]
    checks = [
        {"name": "y", "error": 0.1, "allowed": 0.2, "passed": True},
        {"name": "dx", "error": 0.3, "allowed": 0.2, "passed": False},
    ]
    return {"multiscale_lora": {"checks": checks, "rows": rows, "not_reached": ["compiled"]}}


def test_the_page_says_what_was_met_missed_wrong_broken_and_not_reached():
    page = report.page(results(), ABOUT, "goals.svg")
    for part in (
        "# NVIDIA H200, 2026-11-21",
        "commit abc1234",
        "1 of 2 checks passed",
        "**WRONG** dx: error 0.3, allowed 0.2",
        "| G1 | layer 1 < 2 | eager | loop / ours | 2.5 | at least 2 | yes |",
        "| G6 | layer 1 < 2 | eager | loop / ours | 1.5 | at most 1.2 | **no** |",
        "ours 10.0, loop 25.0",
        "| memory | bytes | 3 |",
        "**ERROR** broken",
        "Not reached: compiled.",
        "![goals](goals.svg)",
    ):
        assert part in page


def test_the_picture_has_a_bar_for_each_goal_as_long_as_it_is_good():
    root = ElementTree.fromstring(report.drawn(results()))
    bars = [e for e in root if e.tag.endswith("rect")]
    assert [float(bar.get("width")) for bar in bars] == [250.0, 160.0]  # 1.25 and 0.8 of what was wanted
    assert len({bar.get("fill") for bar in bars}) == 2
    assert float(max(e.get("height") for e in (root,))) > 2 * 12


def test_page_and_picture_are_written_and_can_be_written_again_from_the_files(tmp_path, capsys):
    written = report.write(results(), ABOUT, tmp_path / "a")
    assert [p.name for p in written] == ["2026-11-21-abc1234.md", "2026-11-21-abc1234-goals.svg"]
    files = tmp_path / "b"
    files.mkdir()
    for name, result in results().items():
        (files / f"{name}.json").write_text(json.dumps({"machine": ABOUT, "bench": name, **result}))
    (files / "calibration.json").write_text('{"schema": 2}')
    assert report.main([str(p) for p in sorted(files.glob("*.json"))]) == 0
    for path in written:
        assert (files / path.name).read_text() == path.read_text()
    assert report.main([str(files / "calibration.json")]) == 2


def test_a_run_without_goals_has_a_page_and_no_picture(tmp_path):
    empty = {"x": {"checks": [], "rows": [], "not_reached": []}}
    (page,) = report.write(empty, ABOUT, tmp_path)
    assert "Nothing was measured." in page.read_text() and "svg" not in page.read_text()


def test_a_result_that_changes_between_runs_is_counted():
    kept = torch.arange(6.0)
    steady = list(races.equal_bits("x", lambda: [kept.clone()], {"again": lambda work: work}))
    assert [(c.error, c.passed) for c in steady] == [(0.0, True)]
    turn = iter(range(100))

    def racy():
        return [kept + (next(turn) == 7)]

    (found,) = races.equal_bits("x", racy, {"again": lambda work: work})
    assert found.error == 6.0 and not found.passed
    assert found.name == "x: elements not equal, again"


def test_a_nan_is_not_equal_to_itself():
    (found,) = races.equal_bits(
        "x", lambda: [torch.tensor([1.0, float("nan")])], {"again": lambda work: work}
    )
    assert found.error == races.RUNS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_a_product_has_equal_bits_every_way():
    x = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
    assert all(check.passed for check in races.equal_bits("x x", lambda: [x @ x]))
