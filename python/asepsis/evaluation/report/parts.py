"""What a kind of folder adds to the report that all kinds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asepsis.evaluation.report.content import Figure, Finding, Table, Tone


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What was looked at, by default the folder, the verdict and the sections of one kind; ``tables`` stand above the plots, ``after`` below them."""

    title: str
    subject: str = ""
    verdict: str
    tone: Tone
    caveat: str = ""
    tables: Sequence[Table] = ()
    losses: Figure | None = None
    drift: Figure | None = None
    scores: Sequence[Figure | None] = ()
    after: Sequence[Table] = ()
    findings: Sequence[Finding] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
