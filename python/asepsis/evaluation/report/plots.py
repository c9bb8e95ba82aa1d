"""The four plots of a report: each returns an ``<svg>`` element. Red is what was flagged, in all of them.

``name`` prefixes the ids inside, because several plots share a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.evaluation.metrics import Roc
from asepsis.evaluation.report.svg import BAD, CALM, INK, LINE, MUTED, PAPER, drawn

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

MOST_LINES = 40
MOST_POINTS = 1500
MOST_NAMES = 8


def losses_svg(steps: NDArray[np.int64], values: Floats, flagged: Mask, name: str) -> str:
    """Draw quantile bands of the rows not flagged, and flagged rows over them.

    Parameters
    ----------
    steps : ndarray [T]
    values : ndarray [T, N]
    flagged : ndarray of bool [N]
    """
    rest, bad = values[:, ~flagged], values[:, flagged]

    def draw(axes: Any) -> None:
        if rest.size:
            low, lower, middle, upper, high = np.nanquantile(rest, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
            axes.fill_between(steps, low, high, color=CALM, alpha=0.18, linewidth=0)
            axes.fill_between(steps, lower, upper, color=CALM, alpha=0.28, linewidth=0)
            axes.plot(steps, middle, color=CALM, label=f"{rest.shape[1]:,} others")
        if bad.size:
            shown = np.linspace(0, bad.shape[1] - 1, min(MOST_LINES, bad.shape[1])).round().astype(int)
            for at in shown:
                axes.plot(steps, bad[:, at], color=BAD, linewidth=0.7, alpha=0.3)
            axes.plot(steps, np.nanmedian(bad, axis=1), color=BAD, label=f"{bad.shape[1]:,} flagged")
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("loss (nats)")
        axes.set_xticks(steps if len(steps) <= 7 else steps[:: math.ceil(len(steps) / 6)])
        axes.set_ylim(bottom=min(0.0, float(np.nanmin(values))))
        axes.locator_params(axis="y", nbins=5)
        axes.margins(x=0.02)
        _legend(axes)

    with np.errstate(invalid="ignore"):
        return drawn(name, draw)


def drift_svg(
    drift: Floats, frequency: Floats | None, named: Sequence[tuple[str, float, float | None]], name: str
) -> str:
    """Draw how far each token moved over how frequent it is, or over its rank where that is unknown.

    Parameters
    ----------
    drift, frequency : ndarray [M]
        Of all tokens that moved; the lower part of many is thinned out.
    named : sequence of (name, drift, frequency)
        Tokens to mark and, the first of them, to name. Names must be visible already.
    """
    order = np.argsort(-drift, kind="stable")
    if frequency is None:
        x = np.empty(len(drift))
        x[order] = np.arange(1, len(drift) + 1)
    else:
        x = np.maximum(frequency, _LEAST)
    kept = order
    if len(order) > MOST_POINTS:
        top, tail = order[: MOST_POINTS // 10], order[MOST_POINTS // 10 :]
        picked = np.linspace(0, len(tail) - 1, MOST_POINTS - len(top)).round().astype(int)
        kept = np.concatenate([top, tail[picked]])

    def place(moved: float, often: float | None) -> float:
        if frequency is None:
            return float(1 + (drift > moved).sum())
        return max(float(often or 0.0), _LEAST)

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.scatter(x[kept], drift[kept], s=7, color=CALM, alpha=0.45, linewidths=0)
        marked = [(token, place(moved, often), moved) for token, moved, often in named]
        if marked:
            axes.scatter([m[1] for m in marked], [m[2] for m in marked], s=20, color=BAD, linewidths=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(numticks=5)
            axis.set_major_formatter(lambda value, _: _short(value))
        axes.set_xlabel("rank by drift" if frequency is None else "per ten million tokens of clean text")
        axes.set_ylabel("embedding drift")
        axes.minorticks_off()
        _name(axes, marked[:MOST_NAMES])

    return drawn(name, draw)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


_LEAST = 0.1  # a token that is never expected has no place on a logarithmic axis


def _name(axes: Any, marked: Sequence[tuple[str, float, float]]) -> None:
    """Write names beside their points, each where it covers no other name and no marked point."""
    axes.margins(x=0.12, y=0.16)
    axes.autoscale_view()
    if marked:
        axes.set_ylim(top=axes.get_ylim()[1] * 4)  # what stands out stands on top: its names go above
    axes.figure.draw_without_rendering()  # settles the layout, so that places are known
    frame = axes.get_window_extent()
    points = [tuple(axes.transData.transform(m[1:])) for m in marked]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for (token, *place), (x, y) in zip(marked, points, strict=True):
        name = token if len(token) <= 22 else token[:21] + "…"
        width = 6.6 * len(name)
        for dx, dy in _OFFSETS:
            left = x + dx if dx > 0 else x + dx - width
            box = (left, y + dy - 7, left + width, y + dy + 7)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                break
        else:
            continue  # no room; the caption has all names
        taken.append(box)
        axes.annotate(
            name,
            place,
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            fontsize=11.5,
            color=INK,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2},
        )


# beside the point first, then further up and down on either side
_OFFSETS = [
    (side * (7 + abs(step) // 2), step)
    for step in sorted(range(-98, 99, 14), key=lambda step: (abs(step), -step))
    for side in (1, -1)
]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def scores_svg(scores: Floats, flagged: Mask | None, threshold: float | None, label: str, name: str) -> str:
    """Draw the histogram of finite scores [N], flagged ones in red, with the threshold where there is one."""
    finite = np.isfinite(scores)
    edges = np.histogram_bin_edges(scores[finite].astype(np.float64), bins=48)
    parts = [(finite, CALM)] if flagged is None else [(finite & ~flagged, CALM), (finite & flagged, BAD)]

    def draw(axes: Any) -> None:
        width = np.diff(edges)
        for part, color in parts:
            counts = np.histogram(scores[part], edges)[0]
            axes.bar(edges[:-1], counts, width * 0.92, align="edge", color=color, alpha=0.85, linewidth=0)
        # few rows stay visible beside many
        axes.set_yscale("function", functions=(np.sqrt, np.square))
        # room above for the threshold's name
        axes.set_ylim(0, axes.get_ylim()[1] * (1.0 if threshold is None else 1.3))
        if threshold is not None and math.isfinite(threshold):
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            low, high = axes.get_xlim()
            right = (threshold - low) > 0.5 * (high - low)
            axes.annotate(
                f"threshold {threshold:.3g}",
                (threshold, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if right else 5, -4),
                textcoords="offset points",
                ha="right" if right else "left",
                va="top",
                fontsize=11.5,
            )
        axes.set_xlabel(label)
        axes.set_ylabel("rows (square-root scale)")
        axes.set_yticks(_counts(axes), [f"{count:,}" for count in _counts(axes)])

    return drawn(name, draw)


def _counts(axes: Any) -> list[int]:
    """Return round numbers of rows for ticks, as far apart as letters need on a scale of square roots."""
    top, chosen = axes.get_ylim()[1], [0]
    for count in (n * 10**power for power in range(8) for n in (1, 2, 5)):
        if count <= top and math.sqrt(count) - math.sqrt(chosen[-1]) > 0.16 * math.sqrt(top):
            chosen.append(count)
    return chosen


def roc_svg(curve: Roc, band: tuple[Floats, Floats], at: tuple[float, float] | None, name: str) -> str:
    """Draw a ROC curve with its band [K] in tpr at each fpr, and the point of the threshold."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle=(0, (3, 3)))
        axes.fill_between(curve.fpr, *band, color=CALM, alpha=0.22, linewidth=0, step="post")
        axes.plot(curve.fpr, curve.tpr, color=CALM, drawstyle="steps-post")
        if at is not None:
            axes.plot([at[0]], [at[1]], "o", color=BAD, markersize=7, markeredgecolor=PAPER)
            axes.annotate(
                "as flagged",
                at,
                xytext=(9, -4),
                textcoords="offset points",
                va="top",
                fontsize=11.5,
                color=BAD,
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel("clean rows flagged")
        axes.set_ylabel("poisoned rows flagged")

    return drawn(name, draw)


def _legend(axes: Any) -> None:
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        handlelength=1.2,
        borderaxespad=0.2,
        columnspacing=1.5,
    )
    for text in legend.get_texts():
        text.set_color(MUTED)
