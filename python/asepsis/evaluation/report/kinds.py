"""A report of each kind of folder, from what lies in it. What was not recorded becomes a command that records it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asepsis.errors import CheckpointError
from asepsis.evaluation.report import content
from asepsis.evaluation.report.content import Missing, Report
from asepsis.evaluation.report.folder import Kind, Source, read_source
from asepsis.evaluation.report.models import of_model_scan, of_purified
from asepsis.evaluation.report.parts import Parts
from asepsis.evaluation.report.rows import of_check, of_demo, of_scan, of_training
from asepsis.evaluation.report.sections import evaluations_table, name_of, roc_sections, rows_section
from asepsis.evaluation.report.settings import record_of, settings_of
from asepsis.evaluation.report.watch import of_guard

_BUILDERS: Mapping[Kind, Callable[[Source], Parts]] = {
    "train": of_training,
    "purify": of_purified,
    "guard": of_guard,
    "demo": of_demo,
    "scan data": of_scan,
    "scan model": of_model_scan,
    "guard check": of_check,
}
#: How each section comes about, where a folder has no evidence for it.
_COMMANDS = {
    content.CONTROL: "asepsis evaluate DIR --clean TEST --triggered TRIGGERED --target-label N --json NUMBERS.json, for this "
    "model and for its controls; then asepsis report DIR --evaluation NUMBERS.json --evaluation CONTROL.json",
    content.LOSSES: "asepsis train --defense abl, or asepsis scan data FILE --model M --output OUT",
    content.DRIFT: "asepsis scan model DIR --base BASE --output OUT",
    content.SCORES: "asepsis guard fit DIR --clean CLEAN --output GUARD",
    content.ROC: "asepsis report DIR --key KEY, with the answer key of an attack and a folder in which rows were judged",
    content.ROWS: "asepsis scan data FILE --model M --output OUT",
}
_ORDER = tuple(_COMMANDS)


def report_of(
    folder: str | Path, *, evaluations: list[Path] | None = None, key: Path | None = None
) -> Report:
    """Return the report of an output folder.

    Parameters
    ----------
    folder
        Written by ``train``, ``purify``, ``demo``, ``guard fit``, or by a scan or check with ``--output``.
    evaluations
        Files of ``asepsis evaluate --json``: of this model and of its controls.
    key
        An answer key of the rows judged, as ``asepsis attack --key`` writes it.

    Raises
    ------
    CheckpointError
        It is no such folder, or what it holds was altered or does not fit together.
    DataError
        The key is of other rows.
    """
    source = read_source(folder, evaluations=evaluations, key=key)
    try:
        return _composed(source, _BUILDERS[source.kind](source))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}: its record is not as {source.kind} writes it ({type(error).__name__}: {error}); run the command "
            "that wrote it again"
        ) from error


def _composed(source: Source, parts: Parts) -> Report:
    """Put the sections in the order of every report."""
    roc = roc_sections(source.judged, source.poisoned)
    known: dict[str, list[Any]] = {
        content.CONTROL: [s for s in (evaluations_table(source.evaluations), *parts.tables) if s],
        content.LOSSES: [parts.losses] if parts.losses else [],
        content.DRIFT: [parts.drift] if parts.drift else [],
        content.SCORES: [figure for figure in parts.scores if figure],
        content.ROC: roc[:1],
        content.ROWS: [*roc[1:], *parts.after, *([rows] if (rows := rows_section(source.judged)) else [])],
    }
    sections = [section for title in _ORDER for section in known[title]]
    has = {content.CONTROL: bool(source.evaluations), content.ROWS: rows_section(source.judged) is not None}
    missing = [
        Missing(title=title, command=parts.commands.get(title, _COMMANDS[title]))
        for title in _ORDER
        if not has.get(title, bool(known[title]))
    ]
    return Report(
        title=parts.title,
        subtitle=parts.subject or name_of(source.folder.name or source.folder),
        verdict=parts.verdict,
        tone=parts.tone,
        caveat=parts.caveat,
        sections=sections,
        missing=missing,
        settings=settings_of(source.manifest),
        record=record_of(source.manifest),
        findings=parts.findings,
    )
