"""Progress of long work on stderr: one bar a phase on a terminal, one plain line a phase otherwise."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from asepsis.data.visible import visible
from asepsis.training.driver import Progress


@contextmanager
def shown() -> Iterator[Progress]:
    """Yield a progress callback; our own warnings are shown as lines meanwhile, other libraries' notes are not."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("asepsis: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("asepsis")
    logger.addHandler(handler)
    try:
        if sys.stderr.isatty():
            with _bars() as progress:
                yield progress
        else:
            yield _Lines()
    finally:
        logger.removeHandler(handler)


class _Visible(logging.Formatter):
    """A terminal would obey what a quoted name hides."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(visible(line, 2000) for line in super().format(record).split("\n"))


class _Lines:
    """Say each phase once, when it is done."""

    def __init__(self) -> None:
        self._name = ""
        self._began = 0.0

    def __call__(self, name: str, done: int, of: int) -> None:
        if name != self._name:
            self._name, self._began = name, time.monotonic()
        if done >= of:
            sys.stderr.write(f"asepsis: {name}: {of} in {time.monotonic() - self._began:.0f} s\n")
            self._name = ""


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def advance(name: str, done: int, of: int) -> None:
            if name not in tasks:
                for old in list(tasks.values()):
                    bars.remove_task(old)  # type: ignore[arg-type]
                tasks.clear()
                tasks[name] = bars.add_task(name, total=of)
            bars.update(tasks[name], completed=done, total=of)  # type: ignore[arg-type]

        yield advance
