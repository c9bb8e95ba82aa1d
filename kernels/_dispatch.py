"""Which implementation of an operation runs: chosen once per call, said once per process, never guessed.

An operation lists the paths it has, fastest first, each with the reason why it cannot run on these arguments (None when
it can). Nothing is imported here: the operation loads the path that was selected.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from asepsis.errors import BackendError, ConfigError

Backend: TypeAlias = Literal["auto", "reference", "native", "triton"]
Path: TypeAlias = Literal["reference", "native", "triton"]

_logger = logging.getLogger("asepsis")


def select(operation: str, backend: Backend, refusals: Mapping[Path, str | None]) -> Path:
    """The path to run.

    Parameters
    ----------
    operation
        Name of the operation, for the messages.
    backend
        ``"auto"`` takes the first path that can run and logs the choice once; any other name takes that path or raises.
    refusals
        The paths the operation has, fastest first. The value is None where the path can run, else one clause that says
        why not and what would help.

    Raises
    ------
    ConfigError
        ``backend`` is no backend at all.
    BackendError
        The path that was asked for does not exist for this operation or cannot run here; under ``"auto"``, no path can.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "auto":
        passed_over = []
        for path, refusal in refusals.items():
            if refusal is None:
                _say(operation, path, tuple(passed_over))
                return path
            passed_over.append(f"{path}: {refusal}")
        raise BackendError(f"{operation} cannot run here; {'; '.join(passed_over)}")
    if backend not in refusals:
        raise BackendError(
            f"{operation} has no {backend} path, it has {', '.join(refusals)}; use one of these or backend='auto'"
        )
    refusal = refusals[backend]
    if refusal is not None:
        raise BackendError(f"{operation} cannot run on the {backend} path: {refusal}; or use backend='auto'")
    return backend


@functools.cache
def _say(operation: str, path: Path, passed_over: tuple[str, ...]) -> None:
    because = f" ({'; '.join(passed_over)})" if passed_over else ""
    _logger.info("%s runs on the %s path%s", operation, path, because)
