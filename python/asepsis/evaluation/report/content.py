"""What a report says, before it is a page, Markdown or SARIF: a verdict and sections in one order.

Strings are plain text. Those that come out of a folder are the attacker's: they are made :func:`visible` where they
enter a report, and each renderer escapes all it is given, its own words too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["found", "good", "quiet"]

#: Headings of what every report has room for, in order, and of what cannot be drawn without evidence.
CONTROL, LOSSES, DRIFT, SCORES, ROC, ROWS = (
    "Beside its controls",
    "Loss trajectories",
    "Embedding drift",
    "Scores and threshold",
    "ROC curve",
    "Flagged rows",
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a head; numbers stand in all columns but the first ``words``."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot of :mod:`asepsis.evaluation.report.plots`, drawn by a page alone, given a
    prefix for its ids; a note, and what it shows in words."""

    title: str
    draw: Callable[[str], str]
    note: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the data, visible and cut."""

    row: int
    suspicion: str
    answer: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to look at, most suspicious first, and how many more stand where."""

    title: str
    rows: Sequence[Row]
    note: str
    more: int = 0
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A section without evidence: what it would show, and the command that records it."""

    title: str
    command: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result for code scanning. ``line`` counts from 1 and is None for what has no line."""

    rule: Literal["suspicious-row", "suspicious-token"]
    level: Literal["warning", "note"]
    text: str
    uri: str
    line: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a report says.

    Attributes
    ----------
    title, subtitle : str
        What was done, and to what.
    verdict, tone : str
        In one or two sentences, and how it is colored.
    caveat : str
        What the verdict does not say.
    sections : list of Table, Figure or Rows
        In the order of the page; figures that follow each other stand side by side.
    missing : list of Missing
    settings : list of (name, value)
        The few that decide the result.
    record : str
        Everything the run recorded, as JSON, visible.
    findings : list of Finding
    """

    title: str
    subtitle: str
    verdict: str
    tone: Tone
    caveat: str = ""
    sections: Sequence[Table | Figure | Rows]
    missing: Sequence[Missing]
    settings: Sequence[tuple[str, str]]
    record: str
    findings: Sequence[Finding] = field(default=())


def number(value: Any, form: str = ".3f") -> str:
    """Return a number for people, a dash for None."""
    return "–" if value is None else format(float(value), form)


def proportion(value: Any) -> str:
    """Return a share with its interval, ``0.823 [0.798, 0.845]``; a dash for None."""
    if value is None:
        return "–"
    return f"{float(value['value']):.3f} [{float(value['low']):.3f}, {float(value['high']):.3f}]"
