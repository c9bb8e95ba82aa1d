"""A report as Markdown for a pull request or a job's summary.

Nothing in it can be a link, a mention, an image, raw HTML or a further cell: whatever is not plainly words and numbers
stands in a code span, where GitHub reads no markup, and backticks and pipes, which would end the span or the cell, are
shown by their code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from asepsis.data.visible import visible
from asepsis.evaluation.report.content import Figure, Report, Rows, Table

_MOST_ROWS = 20
# words, numbers and the marks of a sentence: nothing in them is markup, wherever they stand in a line
_PLAIN = re.compile(r"[\w\s.,;:%()'’+=–…×-]*")
# what GitHub turns into a link by itself, emphasis, and list or heading marks at the start
_LINKS = re.compile(r"www\.|:\S|\bGH-|\b[0-9a-f]{7,40}\b|_|^\s*([-+=]|\d+[.)]\s)", re.IGNORECASE)
# an interval is no link: nothing that could be its target follows it, and no definition can be written
_INTERVAL = re.compile(r"\[[\d., ]+\](?![(\[:])")
_NUMBERS = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?%?")


def to_markdown(report: Report) -> str:
    """Return the report as Markdown: the verdict first, figures in words."""
    lines = [f"## asepsis: {inline(report.title)}", "", f"**{inline(report.verdict)}**", ""]
    if report.caveat:
        lines += [inline(report.caveat), ""]
    for section in report.sections:
        if isinstance(section, Table):
            lines += _table(section.title, section.head, section.rows, section.note)
        elif isinstance(section, Figure):
            lines += [f"- {inline(section.title)}: {inline(section.alt)}", ""]
        else:
            lines += _rows(section)
    if report.missing:
        lines += ["### Not recorded here", ""]
        lines += [f"- {inline(one.title)}: {_code(one.command)}" for one in report.missing]
        lines.append("")
    lines += _table("Settings and versions", ["what", "value"], report.settings, "")
    return "\n".join(lines)


def inline(text: str) -> str:
    """Return text that renders as itself inside a paragraph, a heading or a cell: as it is, or as a code span."""
    words = _INTERVAL.sub("", text)
    harmless = _NUMBERS.fullmatch(text) or (_PLAIN.fullmatch(words) and not _LINKS.search(words))
    return text if harmless and text == visible(text, len(text)) and text == text.strip() else _code(text)


def _code(text: str) -> str:
    shown = visible(text, len(text), also="`|")
    # a span may not be empty, and loses one blank at either end where it has both
    return f"`{shown}`" if shown.strip() else f"`({len(shown)} blanks)`"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> list[str]:
    body = ["| " + " | ".join(inline(cell) for cell in row) + " |" for row in rows]
    if not body:
        return []
    told = [inline(note), ""] if note else []
    return [
        f"### {inline(title)}",
        "",
        *told,
        "| " + " | ".join(map(inline, head)) + " |",
        "|" + "---|" * len(head),
        *body,
        "",
    ]


def _rows(section: Rows) -> list[str]:
    rows = [[str(row.row), row.suspicion, row.answer, row.text] for row in section.rows[:_MOST_ROWS]]
    more = section.more + max(0, len(section.rows) - _MOST_ROWS)
    lines = _table(section.title, ["row", "suspicion", "answer", "text"], rows, section.note)
    return [*lines, f"{more:,} more in {_code(section.where)}.", ""] if more else lines
