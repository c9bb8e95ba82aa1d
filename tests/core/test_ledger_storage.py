"""Columns in files: the same ledger to the last bit, errors where there is no room, no file left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from asepsis.core.ledger import LossLedger
from asepsis.errors import LedgerError

REDUCERS = ("last", "ema", "mean", "mean_rank", "rank_ema", "auc_loss", "drop", "seep")
N = 100_000
COLUMN = 4 * N + 8 * -(-N // 64)


def recorded(*, epochs: int = 3, pending: bool = True, **storage) -> LossLedger:
    """Epochs of shuffled batches, a tenth of the samples seen twice and another never."""
    rng = np.random.default_rng(0)
    ledger = LossLedger(N, **storage)
    for epoch in range(epochs + pending):
        positions = rng.permutation(N)[: -N // 10]
        positions = np.concatenate([positions, positions[: N // 10]])
        losses = rng.exponential(0.3, len(positions)).astype(np.float32)
        losses[:3] = np.nan, np.inf, -0.0
        for start in range(0, len(positions), 30_000):
            ledger.observe(positions[start : start + 30_000], losses[start : start + 30_000])
        if epoch < epochs:
            ledger.end_epoch()
    return ledger


def same(a: LossLedger, b: LossLedger) -> None:
    assert (a.n_samples, a.n_columns) == (b.n_samples, b.n_columns)
    for by in REDUCERS:
        assert a.scores(by).tobytes() == b.scores(by).tobytes()
    for index in range(a.n_columns):
        assert a.column(index).tobytes() == b.column(index).tobytes()
        np.testing.assert_array_equal(a.observed(index), b.observed(index))
    np.testing.assert_array_equal(a.bottom(0.01, by="ema"), b.bottom(0.01, by="ema"))


@pytest.mark.parametrize(
    ("limit", "mapped"), [(0, 4), (COLUMN - 1, 4), (COLUMN, 3), (3 * COLUMN, 1), (4 * COLUMN, 0)]
)
def test_no_bit_depends_on_how_many_columns_lie_in_files(tmp_path, limit, mapped):
    wanted, ledger = recorded(), recorded(memory_limit=limit, folder=tmp_path)
    assert (wanted.n_mapped, ledger.n_mapped) == (0, mapped)
    same(wanted, ledger)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_in_files_is_saved_and_restored_into_files_or_memory(tmp_path):
    ledger = recorded(memory_limit=COLUMN)
    ledger.save(tmp_path / "mapped")
    recorded().save(tmp_path / "memory")
    assert (tmp_path / "mapped").read_bytes() == (tmp_path / "memory").read_bytes()
    for limit, mapped in ((0, 4), (COLUMN, 3), (1 << 40, 0)):
        again = LossLedger.load(tmp_path / "mapped", memory_limit=limit, folder=tmp_path)
        assert again.n_mapped == mapped
        again.end_epoch()
        same(again, recorded(epochs=4, pending=False))


def test_a_limit_below_zero_is_refused():
    with pytest.raises(LedgerError, match="memory_limit must not be negative"):
        LossLedger(3, memory_limit=-1)


def test_a_folder_that_is_missing_is_named_and_nothing_is_recorded(tmp_path):
    ledger = LossLedger(3, memory_limit=0, folder=tmp_path / "later")
    with pytest.raises(
        LedgerError, match=r"a column of 20 bytes cannot be put into .*later.*nothing was recorded"
    ):
        ledger.observe(np.array([0]), np.array([1.0], np.float32))
    with pytest.raises(LedgerError, match="no sample was observed"):
        ledger.end_epoch()
    (tmp_path / "later").mkdir()
    ledger.observe(np.array([0]), np.array([1.0], np.float32))
    assert ledger.end_epoch().observed == 1


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files stands in for a full disk")
def test_a_disk_without_room_is_an_error_and_no_signal(tmp_path):
    script = """
        import resource, signal, sys
        import numpy as np
        from asepsis.core.ledger import LossLedger
        from asepsis.errors import LedgerError
        ledger = LossLedger(1_000_000, memory_limit=0, folder=sys.argv[1])
        positions, losses = np.arange(1_000_000), np.ones(1_000_000, np.float32)
        ledger.observe(positions, losses)
        ledger.end_epoch()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            ledger.observe(positions, losses)
        except LedgerError as error:
            print(error)
        # the epochs before are as they were
        print(ledger.n_columns, ledger.n_mapped, float(ledger.scores("mean").sum()))
    """
    message, state = run(script, str(tmp_path)).splitlines()
    assert "a column of 4125000 bytes cannot be put into" in message
    assert "File too large" in message
    assert "make room there" in message
    assert state == "1 1 1000000.0"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_may_read_a_column_in_a_file_and_not_write_to_it(tmp_path):
    script = """
        import os, sys
        import numpy as np
        from asepsis.core.ledger import LossLedger
        from asepsis.errors import LedgerError
        ledger = LossLedger(2, memory_limit=0, folder=sys.argv[1])
        zero, one = np.array([0]), np.array([1])
        loss = np.array([0.5], np.float32)
        ledger.observe(zero, loss)
        ledger.end_epoch()
        ledger.observe(zero, loss)
        if os.fork() == 0:
            assert ledger.column(0)[0] == 0.5
            try:
                ledger.observe(one, loss)
            except LedgerError as error:
                assert "this process was forked" in str(error)
            else:
                os._exit(1)
            ledger.end_epoch()
            ledger.observe(one, loss)  # into a column of its own
            os._exit(0)
        _, status = os.wait()
        ledger.end_epoch()
        print(status, ledger.observed(1).tolist())
    """
    assert run(script, str(tmp_path)) == "0 [True, False]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_is_killed_leaves_no_file(tmp_path):
    script = """
        import os, signal, sys
        import numpy as np
        from asepsis.core.ledger import LossLedger
        ledger = LossLedger(1000, memory_limit=0, folder=sys.argv[1])
        ledger.observe(np.arange(1000), np.ones(1000, np.float32))
        assert "deleted" in open("/proc/self/maps").read()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    assert list(tmp_path.iterdir()) == []
