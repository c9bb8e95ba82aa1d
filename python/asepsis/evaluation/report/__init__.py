"""Reports: what an output folder says, as one offline page, as Markdown for pull requests, as SARIF for code scanning.

``report_of(folder)`` reads a folder and composes a :class:`Report`; ``to_html``, ``to_markdown`` and ``to_sarif`` render it. Scans
become folders first (``save_scan``, ``save_model_scan``, ``save_check``), so a page made at once and one made later from
the folder are the same.
"""

from __future__ import annotations

from asepsis.evaluation.report.content import Report
from asepsis.evaluation.report.html import to_html
from asepsis.evaluation.report.kinds import report_of
from asepsis.evaluation.report.markdown import to_markdown
from asepsis.evaluation.report.sarif import to_sarif
from asepsis.evaluation.report.saved import (
    check_demo,
    check_found,
    save_check,
    save_demo,
    save_model_scan,
    save_scan,
)
from asepsis.evaluation.report.svg import require_matplotlib

__all__ = [
    "Report",
    "check_demo",
    "check_found",
    "report_of",
    "require_matplotlib",
    "save_check",
    "save_demo",
    "save_model_scan",
    "save_scan",
    "to_html",
    "to_markdown",
    "to_sarif",
]
