"""Checks that several detectors make."""

from __future__ import annotations

from asepsis.data import Data
from asepsis.data.dataset import Task
from asepsis.errors import ConfigError, DataError


def at_least(lowest: int, **fields: int) -> None:
    """Raise ``ConfigError`` for the first field below ``lowest``."""
    for name, value in fields.items():
        if value < lowest:
            raise ConfigError(f"{name} must be at least {lowest}, got {value!r}")


def of_task(data: Data, task: Task, name: str) -> None:
    """Raise ``DataError`` where rows are for another task than the detector was made for."""
    if data.task != task:
        raise DataError(
            f"{data.source}: these rows are for the task {data.task!r}, and this {name!r} detector was made for {task!r}"
        )
