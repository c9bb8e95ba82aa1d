"""The probe's curves as an SVG: no script, nothing loaded, readable on light and on dark paper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as Xml

from asepsis.data.visible import visible
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.frequency.probe import SUBSETS

_TITLE = "How fast the parts of the labels are learned"
_PARTS = {"e_low": "low frequency", "e_high": "high frequency"}
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1d1d1f; } .title { font-size: 15px; font-weight: 600; }
.paper { fill: #ffffff; } .grid { stroke: #d5d5da; } .axis { stroke: #6b6b70; fill: none; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .e_high { stroke-dasharray: 5 4; }
.clean { stroke: #1f5fbf; } .poisoned { stroke: #b3261e; } .clean_same_label { stroke: #1b7f79; }
@media (prefers-color-scheme: dark) {
text { fill: #ececf0; } .paper { fill: #17171a; } .grid { stroke: #3a3a40; } .axis { stroke: #a0a0a8; }
.clean { stroke: #82b1ff; } .poisoned { stroke: #ff8a80; } .clean_same_label { stroke: #6fd6cd; } }
"""
_WIDTH, _HEIGHT, _LEFT, _TOP = 400, 250, 58, 82  # a panel, and where its first one starts
_GAP, _LEGEND_ROW = 62, 20
_TALLEST = 2.0  # errors above are drawn at the edge: the model is then farther from the labels than zero is


def frequency_svg(
    record: Mapping[str, Any], *, sigmas: Sequence[float] | None = None, title: str = _TITLE, note: str = ""
) -> str:
    """Return the curves of ``e_low`` and ``e_high`` over the steps as an SVG document, one panel per sigma.

    Parameters
    ----------
    record : mapping
        What :meth:`FrequencyProbe.to_dict` gave, or its JSON read again.
    sigmas : sequence of float, optional
        Which of the record's widths to draw; by default the middle one.
    title, note : str
        Shown above, the note in smaller letters; escaped, and cut to the width of the plot.

    Raises
    ------
    DataError
        Nothing was observed.
    ConfigError
        A width is not in the record, or none is asked for.
    """
    records, known = record["records"], list(record["sigmas"])
    if not records:
        raise DataError("there is nothing to draw: the probe has not observed the model yet")
    chosen = [known[len(known) // 2]] if sigmas is None else list(sigmas)
    unknown = [sigma for sigma in chosen if sigma not in known]
    if unknown or not chosen:
        raise ConfigError(f"sigmas to draw must be among {known}, got {unknown or chosen}")
    names = [name for name in SUBSETS if name in record["rows"]]
    width = _LEFT + len(chosen) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 56 + _LEGEND_ROW * len(names)
    root = Xml.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-label": _text(title),
        },
    )
    Xml.SubElement(root, "style").text = _STYLE
    _draw(root, "rect", "paper", x=0, y=0, width=width, height=height)
    _write(root, visible(title, width // 9), 16, 24, kind="title")
    _write(root, visible(note, width // 7), 16, 42)
    for index, sigma in enumerate(chosen):
        panel = Xml.SubElement(root, "g", {"class": "panel"})
        _panel(panel, record, known.index(sigma), names, _LEFT + index * (_WIDTH + _GAP))
    for row, name in enumerate(names):
        y = _TOP + _HEIGHT + 60 + row * _LEGEND_ROW
        _write(root, f"{SUBSETS[name]} ({record['rows'][name]})", _LEFT, y)
        for at, part in enumerate(_PARTS):
            x = _LEFT + 232 + at * 95
            _draw(root, "path", f"curve {name} {part}", d=f"M{x} {y - 4}h28")
            _write(root, _PARTS[part].split()[0], x + 34, y)
    return Xml.tostring(root, encoding="unicode")


def _panel(panel: Xml.Element, record: Mapping[str, Any], at: int, names: list[str], left: int) -> None:
    records = record["records"]
    steps = [entry["step"] for entry in records]
    curves = {
        (name, part): [entry["subsets"][name][part][at] for entry in records]
        for name in names
        for part in _PARTS
    }
    seen = [value for curve in curves.values() for value in curve if value is not None]
    top = min(_TALLEST, max(1.0, math.ceil(5 * max(seen, default=1.0)) / 5))
    first, span = steps[0], max(1, steps[-1] - steps[0])

    def place(step: int, value: float) -> str:
        x, y = left + _WIDTH * (step - first) / span, _TOP + _HEIGHT * (1 - min(value, top) / top)
        return f"{x:.1f} {y:.1f}"

    about = f"sigma {record['sigmas'][at]:.3g}: average over about {record['neighbors'][at]:.0f} rows"
    _write(panel, about, left, _TOP - 12)
    for tick in range(5):
        value, y = top * tick / 4, _TOP + _HEIGHT * (1 - tick / 4)
        _draw(panel, "path", "grid", d=f"M{left} {y:.1f}h{_WIDTH}")
        _write(panel, f"{value:.3g}", left - 6, y + 4, anchor="end")
    for step in sorted({first + round(span * quarter / 4) for quarter in range(5)}):
        _write(panel, str(step), left + _WIDTH * (step - first) / span, _TOP + _HEIGHT + 16, anchor="middle")
    _draw(panel, "path", "axis", d=f"M{left} {_TOP}v{_HEIGHT}h{_WIDTH}")
    _write(panel, "optimizer steps", left + _WIDTH / 2, _TOP + _HEIGHT + 34, anchor="middle")
    clipped = " (higher drawn at the edge)" if max(seen, default=0.0) > top else ""
    label = _write(panel, f"relative error{clipped}", 0, 0, anchor="middle")
    label.set("transform", f"translate({left - 40} {_TOP + _HEIGHT / 2:.0f}) rotate(-90)")
    for (name, part), values in curves.items():
        told = f"{SUBSETS[name]}, {_PARTS[part]}"
        group = Xml.SubElement(panel, "g", {"class": f"series {name}-{part}"})
        known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
        Xml.SubElement(group, "title").text = (
            told if known else f"{told}: undefined, the labels have no such part"
        )
        path, pen = "", "M"
        for step, value in zip(steps, values, strict=True):
            path += "" if value is None else pen + place(step, value)
            pen = "M" if value is None else "L"
        if path:
            # a lone point is drawn as a dot of the line's width
            _draw(group, "path", f"curve {name} {part}", d=path + ("h0.1" if len(known) == 1 else ""))


def _draw(parent: Xml.Element, tag: str, kind: str, **attributes: object) -> None:
    Xml.SubElement(parent, tag, {"class": kind, **{key: str(value) for key, value in attributes.items()}})


def _write(
    parent: Xml.Element, text: str, x: float, y: float, *, kind: str = "", anchor: str = "start"
) -> Xml.Element:
    element = Xml.SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor})
    if kind:
        element.set("class", kind)
    element.text = _text(text)
    return element


def _text(text: str) -> str:
    """Return text as XML can hold it: it has no place for control characters and noncharacters."""
    return re.sub("[\ufffe\uffff]", "\ufffd", visible(text))
