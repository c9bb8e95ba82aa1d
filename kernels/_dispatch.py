"""Which implementation of an operation runs: chosen once per call, said once per process, never guessed.

An operation lists the paths it has, fastest first, each with the reason why it cannot run on these arguments
(None when it can). Nothing is imported here: the operation loads the path that was selected.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

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
        ``"auto"`` takes the first path that can run and logs the choice once; any other name takes that path
        or raises.
    refusals
        The paths the operation has, fastest first. The value is None where the path can run, else one clause
        that says why not and what would help.

    Raises
    ------
    ConfigError
        ``backend`` is no backend at all.
    BackendError
        The path that was asked for does not exist for this operation or cannot run here; under ``"auto"``, no
        path can.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "auto":
        passed_over: list[str] = []
        for path, refusal in refusals.items():
            if refusal is None:
                # a log line cannot be traced; torch.compile's first pass says nothing
                if not torch.compiler.is_compiling():
                    _say(operation, path, tuple(passed_over))
                return path
            passed_over.append(f"{path}: {refusal}")
        raise BackendError(f"{operation} cannot run here; {'; '.join(passed_over)}")
    if backend not in refusals:
        raise BackendError(
            f"{operation} has no {backend} path, it has {', '.join(refusals)}; "
            "use one of these or backend='auto'"
        )
    refusal = refusals[backend]
    if refusal is not None:
        raise BackendError(f"{operation} cannot run on the {backend} path: {refusal}; or use backend='auto'")
    return backend


def no_triton(*tensors: Tensor | None) -> str | None:
    """Return why Triton kernels cannot run on these tensors, as ``select`` wants it; None where they can.

    They run on NVIDIA GPUs from compute capability 8.0 on, and on CPU tensors where ``TRITON_INTERPRET=1`` has Triton
    interpret every kernel, which is for tests.
    """
    given = [t for t in tensors if t is not None]
    kinds = sorted({t.device.type for t in given})
    if kinds == ["cpu"] and os.environ.get("TRITON_INTERPRET") == "1":
        return None if _has_triton() else "Triton is not installed; pip install triton"
    if kinds != ["cuda"]:
        return f"the tensors are on {' and '.join(kinds)}, it needs an NVIDIA GPU"
    return _no_triton_on(given[0].device.index or 0)


@functools.cache
def _no_triton_on(index: int) -> str | None:
    if torch.version.hip is not None:
        return "it was written for and tried on NVIDIA GPUs only"
    if not _has_triton():
        return "Triton is not installed; pip install triton"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, it needs 8.0"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _say(operation: str, path: Path, passed_over: tuple[str, ...]) -> None:
    because = f" ({'; '.join(passed_over)})" if passed_over else ""
    _logger.info("%s runs on the %s path%s", operation, path, because)
