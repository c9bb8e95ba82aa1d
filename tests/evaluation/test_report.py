"""Reports show the attacker's text without obeying it."""

from __future__ import annotations

import re

import numpy as np

from asepsis.data import Data
from asepsis.evaluation.report import scan_html, scan_sarif, visible
from asepsis.training.scan import Scan

HOSTILE = '<script>alert(1)</script><img src="https://evil.example/x">\u202ereversed\u200bhidden\x07'


def hostile_scan() -> Scan:
    data = Data(task="classification", texts=[HOSTILE, "fine"], labels=np.array([1, 0]))
    manifest = {"report": {"separation": 0.9, "label": "<b>1</b>"}, "model": HOSTILE}
    flagged = np.array([True, False])
    return Scan(data, np.array([2.0, 0.0], np.float32), flagged, 1.0, "findings", "abl", manifest)


def test_hostile_text_is_escaped_and_hidden_characters_are_shown() -> None:
    page = scan_html(hostile_scan(), {"auroc": None})
    assert "<script" not in page and "<img" not in page and "<b>1" not in page
    assert "&lt;script&gt;" in page
    assert not set("\u202e\u200b\x07") & set(page)
    assert "U+202E" in page and "U+200B" in page


def test_a_report_loads_nothing_and_is_small() -> None:
    page = scan_html(hostile_scan())
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.search(r"<[^>]*\b(src|href)=", page)  # in a tag; escaped text may say what it likes
    assert len(page.encode()) < 50_000


def test_long_text_is_cut() -> None:
    assert visible("x" * 500) == "x" * 300 + "…"


def test_sarif_counts_lines_from_one() -> None:
    log = scan_sarif(hostile_scan(), "rows.jsonl")
    (result,) = log["runs"][0]["results"]
    assert log["version"] == "2.1.0"
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 1
    assert HOSTILE not in result["message"]["text"]
