"""Matplotlib figures as SVG that lives in a page: its colors are the page's, its text stays text.

Output is the same for the same input and version of matplotlib: no date, no random ids. Text is never parsed as
mathematics, so that a token called ``$x$`` is shown and not typeset.
"""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as Xml

from asepsis.errors import MissingDependency

#: Colors that matplotlib is given and the page's variables that take their place.
INK, MUTED, LINE, BAD, CALM, PAPER = (f"#00000{n}" for n in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BAD: "bad", CALM: "calm", PAPER: "paper"}
#: What the page's variables are in a file that has no page: those of ``style.py`` by day.
_COLORS = {
    "ink": "#1d1e20",
    "muted": "#5b5f66",
    "line": "#dcdde1",
    "bad": "#b3261e",
    "calm": "#2f66a9",
    "paper": "#fcfcfb",
}

_WIDTH, _HEIGHT = 360, 270  # of the viewBox; 72 a matplotlib inch, and a font's points are its units
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": False,
    "axes.formatter.use_mathtext": False,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "path.simplify": True,
}


def require_matplotlib(
    what: str = "an HTML report", instead: str = "Markdown and SARIF need nothing more"
) -> None:
    """Raise ``MissingDependency`` where matplotlib is missing; call it before work that ends in ``what``."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingDependency(
            f"{what} draws with matplotlib, which is not installed: pip install 'asepsis[report]'; {instead}"
        ) from error


def drawn(name: str, draw: Callable[[Any], None], *, height: int = _HEIGHT) -> str:
    """Return what ``draw`` puts on a matplotlib ``Axes`` as an ``<svg>`` element.

    Parameters
    ----------
    name
        Prefix of the ids inside: several figures share a page.
    draw
        Given the axes. Colors are those of this module.
    height
        Of the viewBox, which is 360 wide: a phone's width, so that letters keep their size there.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        # letters that matplotlib's own font lacks are the browser's to draw
        warnings.filterwarnings("ignore", message="(?s)Glyph .* missing from")
        warnings.filterwarnings("ignore", message="(?s)Matplotlib currently does not support")
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _settled(buffer.getvalue(), name)


def standalone(svg: str, *, title: str) -> str:
    """Return what :func:`drawn` made as a document of its own: colors for its variables, a ground, a title, a size."""
    Xml.register_namespace("", _SVG)
    Xml.register_namespace("xlink", _LINK)
    for name, color in _COLORS.items():
        svg = svg.replace(f"var(--{name})", color)
    root = Xml.fromstring(svg)
    _, _, width, height = root.attrib["viewBox"].split()
    del root.attrib["aria-hidden"]
    root.attrib |= {"width": f"{float(width) * 1.5:g}", "height": f"{float(height) * 1.5:g}"}
    root.attrib |= {"role": "img", "font-family": "system-ui, 'DejaVu Sans', sans-serif"}
    said, ground = (Xml.Element(f"{{{_SVG}}}{tag}") for tag in ("title", "rect"))
    said.text = title
    ground.attrib |= {"width": width, "height": height, "fill": _COLORS["paper"]}
    root[:0] = [said, ground]
    return Xml.tostring(root, encoding="unicode") + "\n"


def _settled(text: str, name: str) -> str:
    """Strip what a page does not want and name its ids and colors."""
    Xml.register_namespace("", _SVG)
    Xml.register_namespace("xlink", _LINK)
    root = Xml.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # a style element here would speak to the whole page
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = {
        m for element in root.iter() for value in element.attrib.values() for m in _REFERENCE.findall(value)
    }
    for element in root.iter():
        _settle(element, name, used)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("aria-hidden", "true")  # the page says in words what is drawn
    return Xml.tostring(root, encoding="unicode").replace("\r", "")


_REFERENCE = re.compile(r"(?:url\(#|^#)([A-Za-z][\w-]*)\)?")


def _settle(element: Xml.Element, name: str, used: set[str]) -> None:
    if (own := element.get("id")) is not None:
        if own in used:
            element.set("id", f"{name}-{own}")
        else:
            del element.attrib["id"]
    for key, value in list(element.attrib.items()):
        if key == "id":
            continue
        if key == f"{{{_LINK}}}href" or "url(#" in value:
            value = re.sub(r"#([A-Za-z][\w-]*)", rf"#{name}-\1", value)
        if key == "style":
            for color, variable in _VARIABLES.items():
                value = value.replace(color, f"var(--{variable})")
            value = re.sub(r"font(-family)?: [^;]*(;|$)", _font, value)
        element.set(key, value)


def _font(found: re.Match[str]) -> str:
    """Keep a font's size; its family is the page's."""
    size = re.search(r"([\d.]+)px", found.group(0))
    return f"font-size: {size.group(1)}px; " if size else ""
