"""The native module lets other threads run, is safe to share, and survives a fork."""

from __future__ import annotations

import os
import sys
import threading
import warnings

import numpy as np
import pytest

from asepsis import _native


def test_other_threads_run_while_values_are_ranked():
    values = np.random.default_rng(0).random(4_000_000, dtype=np.float32)
    _native.ranks(values[:2])  # the first call loads numpy's table of functions, which lets others run anyhow
    started, done = threading.Event(), threading.Event()
    interval = sys.getswitchinterval()

    def rank() -> None:
        started.set()
        _native.ranks(values)
        done.set()

    # for a minute the interpreter takes the GIL from nobody: only a thread that lets go is overtaken
    sys.setswitchinterval(60)
    try:
        thread = threading.Thread(target=rank)
        thread.start()
        started.wait()
        overtaken = not done.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert overtaken


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
