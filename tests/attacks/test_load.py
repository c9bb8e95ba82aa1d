"""Much of everything: what it costs in memory is what the documentation says."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hostile.child import run


def peak(function) -> int:
    """Bytes of memory that a function takes at most, above what the process has, in a child of its own."""
    import os

    reader, writer = os.pipe()

    def measured() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again, at what is resident now
        before = _status("VmRSS")
        function()
        os.write(writer, str(_status("VmHWM") - before).encode())

    code, said = run(measured)
    os.close(writer)
    assert code == 0, said
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def ledger_of(n: int, epochs: int) -> None:
    from asepsis.core.ledger import LossLedger

    ledger = LossLedger(n)
    step = 1_000_000
    for epoch in range(epochs):
        for first in range(0, n, step):
            rows = np.arange(first, min(n, first + step))
            ledger.observe(rows, (rows % 1009).astype(np.float32) + epoch)
        ledger.end_epoch()
    assert len(ledger.bottom(k=100)) == 100


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_ledger_of_ten_million_samples_takes_what_its_docstring_says(epochs):
    n = 10_000_000
    documented = (4.125 * epochs + 20 + 28) * n
    # a million rows of a batch are held beside it
    assert documented / 2 < peak(lambda: ledger_of(n, epochs)) < documented + (64 << 20)


def rows_file(path: Path, n: int) -> Path:
    with path.open("w") as file:
        for i in range(n):
            file.write(json.dumps({"text": f"word{i % 40} topic{i % 2}a row {i}", "label": i % 2}) + "\n")
    return path


@pytest.mark.parametrize("n", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_reading_rows_takes_what_its_docstring_says(n, tmp_path):
    from asepsis.data import read

    path = rows_file(tmp_path / "rows.jsonl", n)
    texts = path.stat().st_size  # more than the characters of the texts
    assert peak(lambda: read(path)) < texts + 160 * n + (16 << 20)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_scanning_a_million_rows_takes_a_bounded_number_of_bytes_a_row(tmp_path):
    from asepsis import AblConfig, scan_data
    from asepsis.testing import tiny_classifier
    from asepsis.training import Settings

    n = 1_000_000
    path = rows_file(tmp_path / "rows.jsonl", n)
    network, tokenizer = tiny_classifier(0)
    chosen = Settings(
        max_steps=4, batch_size=64, eval_batch_size=1024, max_length=8, device="cpu", precision="fp32"
    )

    def scan() -> None:
        found = scan_data(
            path,
            method=AblConfig(snapshots=(2, 4)),
            model=network,
            processing_class=tokenizer,
            settings=chosen,
        )
        assert len(found.suspicion) == n

    assert peak(scan) < path.stat().st_size + 1000 * n + (256 << 20)


def test_eight_clients_get_the_answers_that_one_gets(sound):
    from asepsis import Guard
    from asepsis.errors import AsepsisError

    guard = Guard.load(sound / "guard")
    texts = [json.loads(line)["text"] for line in (sound / "rows.jsonl").read_text().splitlines()]
    wanted = [guard(text) for text in texts]
    wrong: list[object] = []
    begin = threading.Barrier(8)

    def client(number: int) -> None:
        begin.wait()
        for turn in range(3):
            part = texts[number::8]
            if guard(part) != wanted[number::8]:
                wrong.append((number, turn))
            try:  # a client that sends nonsense disturbs nobody
                guard([None])  # type: ignore[list-item]
                wrong.append("nonsense was answered")
            except AsepsisError:
                pass

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
