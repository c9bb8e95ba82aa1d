"""What verbs that make reports share: paths checked before the work, a folder to make them from, the files themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from asepsis.cli._outputs import check_folders

if TYPE_CHECKING:
    from asepsis.evaluation.report import Report


def check_reports(
    output: Path | None, *, html: Path | None, sarif: Path | None = None, markdown: Path | None = None
) -> None:
    """Raise before the work where a file could not be written, a folder not be replaced, or a page not be drawn."""
    from asepsis.evaluation.report import check_found, require_matplotlib

    check_folders(html, sarif, markdown)
    if output is not None:
        check_found(output)
    if html is not None:
        require_matplotlib()


@contextmanager
def kept(output: Path | None, *, needed: bool) -> Iterator[Path | None]:
    """Yield where to save what was found: ``output``, or a folder that vanishes, or None where nobody asked."""
    if output is not None or not needed:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="asepsis-") as scratch:
        yield Path(scratch) / "scan"


def write_reports(
    source: Path | Report, *, html: Path | None, sarif: Path | None = None, markdown: Path | None = None
) -> None:
    """Write the files asked for, of a folder or of a report that was made of one."""
    from asepsis.evaluation.report import report_of, to_html, to_markdown, to_sarif
    from asepsis.training.checkpoint import write_whole

    if html is None and sarif is None and markdown is None:
        return
    report = report_of(source) if isinstance(source, Path) else source
    if html is not None:
        write_whole(html, to_html(report))
    if markdown is not None:
        write_whole(markdown, to_markdown(report))
    if sarif is not None:
        write_whole(sarif, json.dumps(to_sarif(report), indent=1) + "\n")
