"""What a page says, in which order, and that nothing in a folder can act in it."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asepsis.core.manifest import verify
from asepsis.data.visible import hidden, visible
from asepsis.errors import MissingDependency
from asepsis.evaluation.report import report_of, to_html, to_markdown, to_sarif

KINDS = ("train", "btu", "none", "purify", "guard", "demo", "scan", "model", "check")
ATTACKER = (
    '<script>alert("x")</script> <img src=http://evil.example/x onerror=alert(1)> \u202etxet\u2066 zero\u200bwidth\ufeff '
    "bell\x07 {{ 7*7 }} $\\frac{1}{2}$ &lt; \ud800"
)
FOREIGN = st.text(st.characters(codec=None), min_size=1, max_size=60)


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.headings: list[str] = []
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = tag
        if tag == "h2":
            self.headings.append("")

    def handle_data(self, data):
        if self.inside not in ("style", "title"):
            self.text += data
        if self.inside == "h2":
            self.headings[-1] += data
            self.inside = ""


def check_harmless(page: str) -> Reader:
    read = Reader(page)
    assert not read.tags & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "a",
        "base",
        "image",
        "foreignobject",
    }
    for tag, name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "data") and (name != "href")
        if name == "xlink:href":
            assert value.startswith("#")
        assert "url(" not in value.replace("url(#", "")
        if tag == "meta" and name == "http-equiv":
            assert value == "Content-Security-Policy"
    assert "default-src 'none'" in page
    assert not {c for c in page if hidden(c) and c != "\n"}
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_attacker_wrote_cannot_act_in_any_kind_of_page(make, kind):
    page = to_html(report_of(make(kind, text=ATTACKER, name=ATTACKER)))
    read = check_harmless(page)
    assert "alert(" in read.text
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|49(?= \$)", page)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN, name=FOREIGN)
def test_a_row_is_shown_as_it_is_and_nothing_else_happens(make, text, name):
    page = to_html(report_of(make("scan", text=text, name=name, n=8, flagged=8)))
    assert visible(text) in check_harmless(page).text


def test_the_verdict_comes_first_and_sections_keep_their_order(make):
    read = Reader(to_html(report_of(make("demo"))))
    wanted = [
        "Beside its controls",
        "Loss trajectories",
        "Scores and threshold",
        "ROC curve",
        "Against the answer key",
        "What the verdict rests on",
        "Flagged rows",
        "Not recorded here",
        "Settings and versions",
    ]
    assert read.headings == wanted
    verdict = "Undefended, the trigger works on 99% of the reviews; under ABL on 15%"
    assert 0 < read.text.index(verdict) < read.text.index("Beside its controls")


@pytest.mark.parametrize(
    ("kind", "said", "has"),
    [
        (
            "train",
            "A group of rows was learned too fast. 6 of 60 rows were left out",
            {"Loss trajectories", "Flagged rows"},
        ),
        ("btu", "2 tokens moved further than the rest", {"Embedding drift", "Flagged tokens"}),
        ("none", "without a defense. This is a control", set()),
        (
            "purify",
            "epur put the embeddings of 1 token back",
            {"Embedding drift", "What mixing costs", "Tokens put back"},
        ),
        ("guard", "Flags what scores above", {"The guard and its control", "Scores and threshold"}),
        ("scan", "6 of 60 rows stand out and should not be trained on", {"Loss trajectories", "ROC curve"}),
        ("model", "Suspicious. 1 token moved, cf.", {"Embedding drift", "Tokens", "Tensors", "New tokens"}),
        (
            "check",
            "6 of 60 inputs are flagged, more than chance explains",
            {"Scores and threshold", "Flagged rows"},
        ),
    ],
)
def test_every_kind_says_its_verdict_and_draws_what_it_kept(make, kind, said, has):
    report = report_of(make(kind))
    titles = {section.title for section in report.sections}
    assert said in report.verdict
    assert has <= titles
    assert not titles & {one.title for one in report.missing}
    assert {one.title for one in report.missing} | titles >= {
        "Beside its controls",
        "Loss trajectories",
        "Embedding drift",
        "Scores and threshold",
        "ROC curve",
    }
    assert all(one.command.startswith("asepsis ") for one in report.missing)


def test_nothing_found_is_not_called_clean(make):
    for kind in ("train", "scan"):
        report = report_of(make(kind, flagged=0))
        assert report.tone == "quiet" and "does not prove" in report.caveat
        assert "No " in report.verdict
        assert any(section.title == "Most suspicious rows" for section in report.sections)


def test_ten_thousand_long_flagged_rows_stay_below_two_megabytes_and_say_how_many_more(make):
    folder = make("scan", text="\u202e<&" * 4000, n=10_050, flagged=10_000)
    report = report_of(folder)
    page = to_html(report)
    assert len(page.encode()) < 2_000_000
    assert page.count('<p class="text">') == 200
    assert "9,800 more in asepsis_rows.jsonl" in page and "9,980 more in" in to_markdown(report)
    assert len(to_sarif(report)["runs"][0]["results"]) == 10_000
    assert sum(1 for _ in (folder / "asepsis_rows.jsonl").open()) == 10_050


def test_the_demo_lists_its_page_and_makes_it_again(make):
    folder = make("demo")
    assert verify(folder).verdict == "intact"
    assert (folder / "report.html").read_text(encoding="utf-8") == to_html(report_of(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_folder_makes_the_same_bytes(make, kind):
    folder = make(kind)
    assert to_html(report_of(folder)) == to_html(report_of(folder))


def test_flagged_rows_are_listed_most_suspicious_first_with_their_label(make):
    folder = make("scan", n=40, flagged=3)
    lines = [json.loads(line) for line in (folder / "asepsis_rows.jsonl").open()]
    flagged = [at for at, line in enumerate(lines) if line["flagged"]]
    wanted = sorted(flagged, key=lambda at: -lines[at]["suspicion"])
    page = to_html(report_of(folder))
    assert [int(row) for row in re.findall(r"<span>row (\d+)</span>", page)] == wanted
    assert f"label {lines[wanted[0]]['label']}" in page


def test_long_text_is_cut_and_says_so(make):
    page = to_html(report_of(make("scan", text="a" * 500)))
    assert "a" * 300 + "…" in page and "a" * 301 not in page


def test_an_evaluation_of_a_model_and_of_its_control_make_the_table(make, tmp_path):
    files = []
    for name, hits in (("out", 10), ("control", 99)):
        share = {"value": hits / 100, "n": 100, "low": 0.0, "high": 1.0}
        content = {
            "clean_accuracy": share,
            "attack_success_rate": share if hits == 99 else None,
            "model": name,
        }
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    report = report_of(make("train"), evaluations=files)
    table = report.sections[0]
    assert table.rows == [
        ["out", "0.100 [0.000, 1.000]", "–"],
        ["control", "0.990 [0.000, 1.000]", "0.990 [0.000, 1.000]"],
    ]
    assert "Beside its controls" not in {one.title for one in report.missing}


def test_a_guarded_evaluation_shows_the_model_without_the_guard_too(make, tmp_path):
    def share(value):
        return {"value": value, "n": 100, "low": 0.0, "high": 1.0}

    alone = {"clean_accuracy": share(0.9), "attack_success_rate": share(1.0)}
    content = {
        "clean_accuracy": share(0.8),
        "attack_success_rate": share(0.1),
        "model": "m",
        "guard": {"x": 1},
    }
    path = tmp_path / "e.json"
    path.write_text(json.dumps(content | {"unguarded": alone}))
    rows = report_of(make("guard"), evaluations=[path]).sections[0].rows
    assert [row[0] for row in rows] == ["m, behind the guard", "m, without it"]
    assert rows[1][2].startswith("1.000")


def test_a_key_adds_the_roc_curve_of_the_rows_it_names(make, tmp_path):
    folder = make("train", n=30, flagged=5)
    flagged = [json.loads(line)["flagged"] for line in (folder / "asepsis_rows.jsonl").open()]
    key = tmp_path / "key.jsonl"
    key.write_text(
        "".join(json.dumps({"row": at, "poisoned": int(f)}) + "\n" for at, f in enumerate(flagged))
    )
    titles = {section.title: section for section in report_of(folder, key=key).sections}
    assert titles["ROC curve"].alt.startswith("AUROC 1.000 [")
    assert titles["Against the answer key"].rows[2][1].startswith("0.000")
    assert "ROC curve" in {one.title for one in report_of(folder).missing}


def test_rows_without_a_finite_loss_are_left_out_of_the_trajectories_aloud(make, folders):
    from asepsis.core.evidence import read_evidence
    from asepsis.core.judged import read_judged
    from asepsis.evaluation.report.sections import losses_figure

    folder = make("train", n=20, flagged=2)
    arrays, judged = read_evidence(folder), read_judged(folder / "asepsis_rows.jsonl")
    arrays["loss.values"][1, 3] = np.nan
    figure = losses_figure(arrays, judged)
    assert figure is not None and "Left out: 1 row without a finite loss" in figure.note
    arrays["loss.values"][:] = np.nan
    assert losses_figure(arrays, judged) is None


def test_without_matplotlib_a_page_names_the_extra_and_the_others_need_none(make, monkeypatch):
    report = report_of(make("scan"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"asepsis\[report\]"):
        to_html(report)
    assert to_markdown(report) and to_sarif(report)


def test_equal_scores_still_make_a_histogram_and_none_make_none(make):
    from asepsis.evaluation.report.sections import scores_figure

    figure = scores_figure(np.zeros(12, np.float32), None, 0.0, label="x", note="")
    assert figure is not None and "<svg" in figure.draw("f0")
    assert scores_figure(np.full(3, np.nan, np.float32), None, None, label="x", note="") is None
