"""The findings of a report as SARIF 2.1.0, for code scanning."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from asepsis.data.visible import visible
from asepsis.evaluation.report.content import Finding, Report

_RULES = {
    "suspicious-row": "Training row that looks poisoned",
    "suspicious-token": "Token whose embedding moved further than training explains",
}


def to_sarif(report: Report) -> dict[str, Any]:
    """Return the findings, none where nothing was found. Rows are named by number: their text stays out of the log."""
    from asepsis import __version__

    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in _RULES.items()]
    driver = {"name": "asepsis", "version": __version__, "rules": rules}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(one) for one in report.findings]}],
    }


def _result(finding: Finding) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(finding.uri, errors="replace")}}
    if finding.line is not None:
        place["region"] = {"startLine": finding.line}
    return {
        "ruleId": finding.rule,
        "level": finding.level,
        # brackets would be links and braces arguments of a message
        "message": {"text": visible(finding.text, len(finding.text), also="[]{}\\")},
        "locations": [{"physicalLocation": place}],
    }
