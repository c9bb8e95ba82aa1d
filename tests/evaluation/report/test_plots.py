"""The plots: text stays text, colors are the page's, and nothing reaches outside."""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asepsis.data.visible import visible
from asepsis.evaluation.metrics import roc_curve
from asepsis.evaluation.report.plots import drift_svg, losses_svg, roc_svg, scores_svg

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=200).astype(np.float32)
FLAGGED = SCORES > 1.5
STEPS = np.array([0, 20, 40])
VALUES = np.abs(RNG.normal(size=(3, 200))).astype(np.float32)
DRIFT = RNG.lognormal(size=5000)


def plots(prefix: str = "p") -> dict[str, str]:
    curve = roc_curve(SCORES, FLAGGED)
    assert curve is not None
    return {
        "losses": losses_svg(STEPS, VALUES, FLAGGED, prefix),
        "drift": drift_svg(DRIFT, DRIFT**2, [("'cf'", 40.0, 1.0)], prefix),
        "rank": drift_svg(DRIFT, None, [("'cf'", 40.0, None)], prefix),
        "scores": scores_svg(SCORES, FLAGGED, 1.5, "suspicion", prefix),
        "roc": roc_svg(curve, (curve.tpr, curve.tpr), (0.1, 0.9), prefix),
    }


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in Xml.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", ["losses", "drift", "rank", "scores", "roc"])
def test_a_plot_is_small_takes_the_pages_colors_and_loads_nothing(name):
    svg = plots()[name]
    assert len(svg) < 200_000
    colors = set(re.findall(r"#[0-9a-fA-F]{6}\b", svg))
    assert not colors, colors
    assert "var(--calm)" in svg and "<style" not in svg and "<metadata" not in svg
    assert "font-family" not in svg
    assert not re.search(r"https?://(?!www\.w3\.org/)", svg)
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", svg))
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert used == set(ids) and len(ids) == len(set(ids)) and all(i.startswith("p-") for i in ids)


def test_two_plots_share_no_id_and_one_drawn_twice_is_the_same():
    first, second = plots("a"), plots("b")
    assert first == plots("a")
    joined = "".join(first.values())
    assert not set(re.findall(r'\bid="([^"]+)"', joined)) & set(
        re.findall(r'\bid="([^"]+)"', "".join(second.values()))
    )


@pytest.mark.parametrize(
    "name", ["$x$", "$\\frac{1}{2}$", "$\\notacommand", "a<b&c>", "]]>", "%s {0}", "日本", "'\\x1b'"]
)
def test_a_token_is_drawn_letter_by_letter_and_never_as_mathematics(name):
    assert name in texts(drift_svg(DRIFT, None, [(name, 40.0, None)], "p"))


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(codec=None), min_size=1, max_size=20))
def test_any_token_made_visible_can_be_drawn(text):
    name = visible(repr(text), 60)
    short = name if len(name) <= 22 else name[:21] + "…"
    # Xml reads several blanks as they are; a name of nothing but the place it has is drawn too
    assert short in texts(drift_svg(DRIFT[:50], None, [(name, 40.0, None)], "p"))


def test_names_do_not_lie_on_each_other():
    named = [(f"'token{i}'", 300.0 - i, 1.0 + i) for i in range(8)]
    boxes = []
    for text in Xml.fromstring(drift_svg(DRIFT, DRIFT, named, "p")).iter("{http://www.w3.org/2000/svg}text"):
        if (text.text or "").startswith("'token"):
            left, y = float(text.attrib["x"]), float(text.attrib["y"])
            if "text-anchor: end" in text.attrib["style"]:
                left -= 50
            boxes.append((left, y))
    assert len(boxes) == 8
    for at, (x, y) in enumerate(boxes):
        assert not [b for b in boxes[at + 1 :] if abs(b[0] - x) < 48 and abs(b[1] - y) < 11]


def test_the_band_and_many_rows_are_thinned():
    n = 50_000
    flagged = np.arange(n) < 20_000
    svg = losses_svg(STEPS, np.abs(RNG.normal(size=(3, n))).astype(np.float32), flagged, "p")
    assert len(svg) < 100_000 and "30,000 others" in svg and "20,000 flagged" in svg


def test_losses_of_one_kind_of_row_alone_are_drawn():
    for flagged in (np.ones(200, bool), np.zeros(200, bool)):
        assert "<svg" in losses_svg(STEPS, VALUES, flagged, "p")


def test_settings_of_a_users_matplotlib_are_neither_used_nor_changed():
    import matplotlib

    before = plots()["scores"]
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "#ff0000", "text.usetex": True}):
        assert plots()["scores"] == before
        assert matplotlib.rcParams["font.size"] == 40
