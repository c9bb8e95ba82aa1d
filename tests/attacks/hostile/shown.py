"""Hostile text on its way to a reader: as a page, as findings for code scanning, as the name of a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def scan_of(texts: Sequence[str]) -> Any:
    """Return a scan that flagged these rows."""
    import numpy as np

    from asepsis.data import Data
    from asepsis.training.scan import Scan

    n = len(texts)
    rows = Data(task="classification", texts=list(texts), labels=np.zeros(n, np.int64), source=texts[0])
    manifest = {"report": {"recognized": texts[0]}, "model": texts[0]}
    return Scan(rows, np.arange(n, dtype=np.float32), np.ones(n, bool), 0.5, "findings", "abl", manifest)


def _report_of(texts: Sequence[str]) -> Any:
    import tempfile
    from pathlib import Path

    from asepsis.evaluation.report import report_of, save_scan

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "scan"
        save_scan(folder, scan_of(texts))
        return report_of(folder)


def page(texts: Sequence[str]) -> str:
    """Return the page of a scan that flagged these rows."""
    from asepsis.evaluation.report import to_html

    return to_html(_report_of(texts))


def markdown(texts: Sequence[str]) -> str:
    """Return the Markdown of a scan that flagged these rows."""
    from asepsis.evaluation.report import to_markdown

    return to_markdown(_report_of(texts))


def sarif(texts: Sequence[str]) -> dict[str, Any]:
    """Return the findings of a scan that flagged these rows."""
    from asepsis.evaluation.report import to_sarif

    return to_sarif(_report_of(texts))


def token(name: str) -> str:
    """Return a token's name as tables show it."""
    from asepsis.evaluation.report.sections import token_of

    return token_of(name)
