"""Run a piece of work in a process of its own, that begins without what earlier work left."""

from __future__ import annotations

import copy
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from asepsis.errors import AsepsisError

Within = Callable[[], AbstractContextManager[Any]]


class _There(Exception):
    """The traceback of what was raised in the other process."""


class Runner(Protocol):
    """Return ``work(*arguments)``."""

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run it."""


def here(work: Callable[..., Any], *arguments: Any, within: Within = nullcontext) -> Any:
    """Return ``work(*arguments)``, run in this process."""
    with within():
        return work(*arguments)


def apart(work: Callable[..., Any], *arguments: Any, within: Within = nullcontext) -> Any:
    """Return ``work(*arguments)``, run in a process of its own.

    What a process holds at most depends on what it held before: pages of earlier work that are neither free nor in use.

    Parameters
    ----------
    work : callable
        Of a module, as its arguments and what it returns have to be: they are pickled.
    within : callable
        Gives the context it runs in there.

    Raises
    ------
    AsepsisError
        The process ended without an answer: it was killed, or out of memory.
    Exception
        Whatever the work raises.
    """
    context = multiprocessing.get_context("forkserver")
    # read once, for all that are forked from it
    context.set_forkserver_preload(["asepsis.evaluation.grid.run"])
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(end, within, work, arguments))
    process.start()
    end.close()  # or the answer of a process that was killed would be waited for
    try:
        error, value = answer.recv()
    except EOFError:
        process.join()
        raise AsepsisError(
            f"the process of a cell ended with {process.exitcode}, where -9 is often too little memory; "
            "the cells before it are kept, and the grid goes on from there"
        ) from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
        answer.close()
    if error is not None:
        raise error from _There(value)
    return value


def runner() -> Callable[..., Any]:
    """Return :func:`apart` where memory is a process's (Linux, no GPU), else :func:`here`: a GPU's counter is exact."""
    return apart if sys.platform == "linux" and not torch.cuda.is_available() else here


def _work(end: Connection, within: Within, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send (None, what it returned) or (what it raised, the traceback)."""
    told: tuple[BaseException | None, Any]
    try:
        told = None, here(work, *arguments, within=within)
    except BaseException as error:  # KeyboardInterrupt as well: the other side ends it
        told = _portable(error), traceback.format_exc()
    end.send(told)


def _portable(error: BaseException) -> BaseException:
    """An error that can be read on the other side: some of other libraries cannot be made again from their message."""
    try:
        copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
