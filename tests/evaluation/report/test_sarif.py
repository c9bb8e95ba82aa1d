"""SARIF: its required fields, its lines, and that a message cannot hold a link."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asepsis import __version__
from asepsis.evaluation.report import report_of, to_sarif


def results(folder: Path) -> list[dict]:
    (run,) = to_sarif(report_of(folder))["runs"]
    return run["results"]


def test_it_has_the_required_fields_and_counts_lines_from_one(make):
    folder = make("scan", name="train", n=12, flagged=3)
    log = json.loads(json.dumps(to_sarif(report_of(folder))))
    assert log["version"] == "2.1.0" and log["$schema"].endswith(".json")
    (run,) = log["runs"]
    assert (run["tool"]["driver"]["name"], run["tool"]["driver"]["version"]) == ("asepsis", __version__)
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    flagged = [json.loads(line)["flagged"] for line in (folder / "asepsis_rows.jsonl").open()]
    lines = []
    for result in run["results"]:
        assert result["ruleId"] in rules and result["level"] == "warning" and result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "train.jsonl"
        lines.append(location["physicalLocation"]["region"]["startLine"])
    assert lines == [at + 1 for at, flag in enumerate(flagged) if flag]


@pytest.mark.parametrize(("suffix", "first"), [("csv", 2), ("TSV", 2), ("parquet", 1), ("jsonl", 1)])
def test_lines_of_a_table_come_after_its_header(make, suffix, first):
    folder = make("scan", n=4, flagged=4)
    path = folder / "asepsis.json"
    manifest = json.loads(path.read_text())
    manifest["scan"]["source"] = f"rows.{suffix}"
    path.write_text(json.dumps(manifest))
    lines = [r["locations"][0]["physicalLocation"]["region"]["startLine"] for r in results(folder)]
    assert lines == [first, first + 1, first + 2, first + 3]


@pytest.mark.parametrize("kind", ["none", "guard", "btu"])
def test_no_finding_is_an_empty_list(make, kind):
    assert results(make(kind)) == []
    assert results(make("scan", flagged=0)) == []


def test_a_token_is_named_and_cannot_make_a_link_or_an_argument(make):
    (found,) = results(make("model", name="[x](http://evil.example) {0} \u202e"))
    assert found["ruleId"] == "suspicious-token" and "region" not in found["locations"][0]["physicalLocation"]
    text = found["message"]["text"]
    assert not set("[]{}\\\u202e") & set(text) and "<U+005B>x<U+005D>" in text
    uri = found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.startswith("%5Bx%5D") and uri.isascii()


def test_a_rows_text_stays_out_of_the_log(make):
    assert "secret words" not in json.dumps(results(make("scan", text="secret words")))
