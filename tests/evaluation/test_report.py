from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from asepsis import __version__
from asepsis.core.phases import Acted, Outcome
from asepsis.evaluation.report import demo_html, scan_html, scan_sarif, visible
from asepsis.testing import tiny_rows
from asepsis.training.scan import Scan

ATTACKER = '<script>alert("x")</script> <img src=http://evil.example/x> \u202etxet\u2066 zero\u200bwidth\u200d\ufeff bell\x07'
CLEAN = {"value": 0.9, "n": 10, "low": 0.6, "high": 0.98}


def scan_of(texts=None, *, n=12, flagged=(1, 4), verdict="findings", manifest=None):
    data = tiny_rows(n, 0)
    if texts is not None:
        data = replace(data, texts=texts)
    marks = np.zeros(n, bool)
    marks[list(flagged)] = True
    suspicion = np.linspace(0, 1, n, dtype=np.float32)
    report = {"report": {"separation": 0.71, "chosen_step": 20}}
    return Scan(data, suspicion, marks, 0.5, verdict, "abl", manifest or report)


def demo_of(texts):
    data = replace(tiny_rows(len(texts), 0), texts=texts)
    outcome = Outcome(
        acted=Acted(samples=len(texts), steps=1),
        suspicion=np.linspace(0, 1, len(texts), dtype=np.float32),
        flagged=data.sample_ids[:1],
        report={},
    )
    rows = [{"defense": "none", "clean_accuracy": CLEAN, "attack_success_rate": CLEAN}]
    return demo_html(rows, "a sentence", {"seed": 0}, data, outcome)


def pages():
    texts = [ATTACKER] * 12
    return {"scan": scan_html(scan_of(texts)), "demo": demo_of(texts)}


@pytest.mark.parametrize("kind", ["scan", "demo"])
def test_texts_of_an_attacker_cannot_act_in_a_report(kind):
    page = pages()[kind]
    assert "&lt;script&gt;" in page
    assert not re.search(r"<\s*(script|img|link|iframe|object|embed|form|a)\b", page, re.I)
    assert not re.search(r"\son\w+\s*=\s*[\"']", page, re.I)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", ["scan", "demo"])
def test_hidden_and_reordering_characters_are_shown_by_code(kind):
    page = pages()[kind]
    for character in "\u202e\u2066\u200b\u200d\ufeff\x07":
        assert character not in page
        assert f"&lt;U+{ord(character):04X}&gt;" in page


@pytest.mark.parametrize("kind", ["scan", "demo"])
def test_a_report_loads_nothing(kind):
    page = pages()[kind]
    assert not re.search(r"(src|href|action|srcset|data)\s*=\s*[\"']", page, re.I)
    assert not re.search(r"url\(|@import", page)
    outside = page.replace("&lt;img src=http://evil.example/x&gt;", "")  # the attacker's, as text
    assert outside != page
    assert "http://" not in outside and "https://" not in outside


def test_a_manifest_is_escaped_too():
    page = scan_html(scan_of(manifest={"model": "</pre><script>\u202e"}))
    assert "<script>" not in page and "\u202e" not in page


def test_column_and_method_names_are_escaped_too():
    page = scan_html(scan_of(manifest={"report": {"label": "<script>\u200b"}}), {"<script>": 0.5})
    assert "<script>" not in page and "\u200b" not in page


def test_a_report_of_many_long_flagged_rows_stays_below_two_megabytes():
    page = scan_html(scan_of(["\u202e<&" * 4000] * 3000, n=3000, flagged=range(3000)))
    assert len(page.encode()) < 2_000_000
    assert page.count('<td class="t">') == 200


def test_flagged_rows_are_listed_most_suspicious_first_under_their_row():
    page = scan_html(scan_of())
    assert re.findall(r'<tr><td class="n">(\d+)</td><td class="n">([\d.]+)</td>', page) == [
        ("4", "0.364"),
        ("1", "0.091"),
    ]


def test_the_bars_count_every_row_once():
    page = scan_html(scan_of(n=50, flagged=range(45, 50)))
    counts = re.findall(r'<rect class="(.)".*?<title>(\d+) rows</title>', page)
    assert sum(int(n) for kind, n in counts if kind == "c") == 45
    assert sum(int(n) for kind, n in counts if kind == "f") == 5


def test_equal_suspicion_everywhere_still_makes_a_report():
    scan = replace(scan_of(), suspicion=np.zeros(12, np.float32))
    assert "Suspicion of every row" in scan_html(scan)


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("findings", "2 of 12 rows stand out"),
        ("none", "does not prove that none is poisoned"),
        ("inconclusive", "too weak to decide"),
    ],
)
def test_each_verdict_has_its_sentence(verdict, sentence):
    assert sentence in scan_html(scan_of(verdict=verdict))


def test_an_undefined_metric_is_a_dash_and_not_a_number():
    page = scan_html(scan_of(), {"auroc": None, "tpr": 0.25})
    assert re.search(r"<td class=\"\">auroc</td><td class=\"n\">–</td>", page)
    assert re.search(r"<td class=\"\">tpr</td><td class=\"n\">0\.250</td>", page)


def test_long_text_is_cut_and_says_so():
    assert visible("a" * 400) == "a" * 300 + "…"
    assert visible("a\tb\n") == "a<U+0009>b<U+000A>"
    assert visible("ordinary text, 日本 🙂") == "ordinary text, 日本 🙂"


@pytest.mark.parametrize("hidden", ["\ufe0f", "\U000e0101", "\u3164", "\u2800", "\u00ad", "\U000e0041"])
def test_characters_without_a_glyph_are_shown_by_code(hidden):
    assert visible(f"a{hidden}b") == f"a<U+{ord(hidden):04X}>b"


def test_sarif_has_the_required_fields_and_counts_lines_from_one():
    log = json.loads(json.dumps(scan_sarif(scan_of(flagged=(0, 4)), "train.jsonl")))
    assert log["version"] == "2.1.0" and log["$schema"].endswith(".json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("asepsis", __version__)
    rules = {rule["id"] for rule in driver["rules"]}
    lines = []
    for result in run["results"]:
        assert result["ruleId"] in rules
        assert result["level"] == "warning" and result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "train.jsonl"
        lines.append(location["physicalLocation"]["region"]["startLine"])
    assert lines == [1, 5]


def test_sarif_without_findings_has_an_empty_list_of_results():
    assert scan_sarif(scan_of(flagged=(), verdict="none"), "a")["runs"][0]["results"] == []


def test_sarif_lines_of_a_table_come_after_its_header():
    log = scan_sarif(scan_of(flagged=(0, 4)), "train.CSV")
    regions = [r["locations"][0]["physicalLocation"]["region"] for r in log["runs"][0]["results"]]
    assert [region["startLine"] for region in regions] == [2, 6]
