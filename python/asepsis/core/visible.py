"""Text that somebody else wrote, made safe to look at: what hides, reorders or steers is shown by its code."""

from __future__ import annotations

import unicodedata


def visible(text: str, limit: int = 300) -> str:
    """Return text with invisible and reordering characters replaced by ``<U+XXXX>``, cut to ``limit`` characters.

    HTML is not escaped here: a page does that for everything it shows.
    """
    shown = "".join(f"<U+{ord(c):04X}>" if hides(c) else c for c in text[:limit])
    return shown + ("…" if len(text) > limit else "")


def hides(c: str) -> bool:
    """Whether a character is invisible, reorders its neighbors, or steers a terminal."""
    # controls, formats, surrogates, private and unassigned codes, separators; then variation selectors and the letters
    # and symbols that are blank, which Unicode files under marks, letters and symbols
    return (
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or "\ufe00" <= c <= "\ufe0f"
        or "\U000e0100" <= c <= "\U000e01ef"
        or c in "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    )
