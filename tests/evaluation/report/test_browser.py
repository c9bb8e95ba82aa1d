"""Pages as a real browser lays them out: a phone and a desk, light and dark."""

from __future__ import annotations

import pytest

from asepsis.evaluation.report import report_of, to_html

HOSTILE = "averyveryverylongwordwithoutanyplacetobreak" * 6 + " <b>x</b> \u202eevil 日本語 مرحبا"


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("kind", ["demo", "model", "guard", "btu", "purify"])
def test_nothing_overflows_and_the_console_stays_silent(make, tab, tmp_path, kind):
    page = tmp_path / f"{kind}.html"
    page.write_text(to_html(report_of(make(kind, text=HOSTILE, name=HOSTILE))), encoding="utf-8")
    colors = {}
    for width in (360, 1280):
        for dark in (False, True):
            found = tab.look(page, width=width, dark=dark)
            where = f"{kind} at {width} {'dark' if dark else 'light'}"
            assert found["wide"] <= 0, where
            assert found["out"] == [], where
            assert found["said"] == [], where
            assert found["letters"] >= 10, where
            colors[dark] = (found["ink"], found["paper"], found["strokes"])
    assert all(light != dark for light, dark in zip(colors[False], colors[True], strict=True))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_page_that_overflows_complains_and_loads_something_is_noticed(tab, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><main><p style='width: 900px'>wide</p></main>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>"
    )
    found = tab.look(page, width=360, dark=False)
    assert found["wide"] > 0 and found["out"] == ["P wide"]
    said = " ".join(found["said"])
    assert "loads http://127.0.0.1:9/x.png" in said and "no" in said
