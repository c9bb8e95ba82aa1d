"""Text of somebody else as a reader can trust it: what hides, reorders or commands is shown by its code.

The one place that decides this, for pages, Markdown, SARIF, plots and the terminal. It makes text *visible*; whether a
``<`` or a backtick acts is for the format that holds the text.
"""

from __future__ import annotations

import unicodedata

LONGEST = 300  # characters of a row's text that are kept and shown


def visible(text: str, limit: int = LONGEST, *, also: str = "", lines: bool = False) -> str:
    """Return text with invisible and reordering characters replaced by ``<U+XXXX>``, cut to ``limit`` of its characters.

    Parameters
    ----------
    text
        Anything; half a surrogate pair included.
    limit
        Characters of ``text`` that are kept; an ellipsis says that there were more.
    also
        Further characters to show by their code, because they act where the text is going.
    lines
        Leave line feeds as they are.
    """
    kept = "\n" if lines else ""
    shown = "".join(
        f"<U+{ord(c):04X}>" if c not in kept and (c in also or hidden(c)) else c for c in text[:limit]
    )
    return shown + ("…" if len(text) > limit else "")


def hidden(c: str) -> bool:
    """Whether a character has no glyph of its own, or moves those of others."""
    # controls, formats, surrogates, private and unassigned codes, separators; then spaces that are not the space bar's,
    # variation selectors, and the letters and symbols that are blank, which Unicode files under marks, letters and symbols
    return (
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or (c != " " and unicodedata.category(c) == "Zs")
        or "\ufe00" <= c <= "\ufe0f"
        or "\U000e0100" <= c <= "\U000e01ef"
        or c in "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    )
