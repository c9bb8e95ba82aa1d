"""The native module lets other threads run, is safe to share, and survives a fork."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asepsis import _native
from asepsis.errors import LedgerError


def test_other_threads_run_while_values_are_ranked(overtakes):
    values = np.random.default_rng(0).random(4_000_000, dtype=np.float32)
    assert overtakes(lambda: _native.ranks(values))


def test_threads_may_share_a_ledger():
    n, n_threads = 20_000, 4
    ledger = _native.Ledger(n)
    errors: list[BaseException] = []

    def work(part: int) -> None:
        try:
            positions = np.arange(part, n, n_threads)
            for start in range(0, len(positions), 50):
                batch = positions[start : start + 50]
                ledger.observe(batch, batch.astype(np.float32))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert ledger.end_epoch()["observed"] == n
    np.testing.assert_array_equal(ledger.scores("last"), np.arange(n))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_rank_and_record():
    values = np.random.default_rng(0).random(100_000, dtype=np.float32)
    wanted = _native.bottom_k(values, 100)
    ledger = _native.Ledger(len(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's idle threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            ledger.observe(np.arange(len(values)), values)
            ledger.end_epoch()
            picked = _native.bottom_k(ledger.scores("last"), 100)
            status = 0 if np.array_equal(picked, wanted) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def forked(work: Callable[[], bool], *, seconds: float = 60) -> None:
    """Run in a forked child, which must say yes within the time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside other threads is what is tested
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    for _ in range(int(seconds / 0.02)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked child hangs")


def alone(*, seconds: float) -> bool:
    """Whether this process has one thread. On a busy machine the kernel lists those that have ended for a while."""
    tasks = Path("/proc/self/task")
    until = time.monotonic() + seconds
    while tasks.exists() and len(list(tasks.iterdir())) > 1:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_from_the_midst_of_parallel_work_works_in_parallel_and_keeps_no_thread():
    values = np.random.default_rng(0).random(600_000, dtype=np.float32)
    wanted = _native.bottom_k(values, 6000)
    matrix = values.view(np.uint8).reshape(600, 4000)
    dtypes = {"reference_dtype": "float32", "tuned_dtype": "float32", "threads": 2}
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            _native.bottom_k(values, 6000, threads=2)
            _native.row_stats(matrix, matrix, **dtypes)

    def child() -> bool:
        picked = _native.bottom_k(values, 6000, threads=2)
        _native.row_stats(matrix, matrix, **dtypes)
        return np.array_equal(picked, wanted) and alone(seconds=20)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(5):
            forked(child)
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_ledger_that_was_locked_at_the_fork_is_refused_and_does_not_hang():
    n = 300_000
    ledger = _native.Ledger(n)
    positions, losses = np.arange(n), np.ones(n, np.float32)
    ledger.observe(positions, losses)
    stop = threading.Event()

    def keep_locked() -> None:
        while not stop.is_set():
            ledger.state()

    def child() -> bool:
        try:
            ledger.observe(positions, losses)
        except LedgerError as error:
            return "was forked while" in str(error)
        return True

    thread = threading.Thread(target=keep_locked)
    thread.start()
    try:
        for _ in range(5):
            forked(child)
    finally:
        stop.set()
        thread.join()


def test_a_call_that_keeps_the_gil_is_not_overtaken(overtakes):
    assert not overtakes(lambda: sum(range(300_000)))
