"""Cases of ``native.py``: losses into the ledger by batches, beside numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from asepsis.core.ledger import LossLedger


def ledger(table: Any, n: int) -> None:
    for batch in (32, 1024, 65_536):
        rng, count = np.random.default_rng(3), min(n, 4096 * batch)
        positions, losses = rng.permutation(n)[:count], rng.random(count, dtype=np.float32)
        cuts = [slice(at, at + batch) for at in range(0, count, batch)]
        batches = [(positions[cut], losses[cut]) for cut in cuts]
        kept, column, seen = LossLedger(n), np.full(n, np.nan, np.float32), np.zeros(n, np.bool_)

        def ours(batches: Any = batches, kept: LossLedger = kept) -> None:
            for positions, losses in batches:
                kept.observe(positions, losses)

        def theirs(batches: Any = batches, column: np.ndarray = column, seen: np.ndarray = seen) -> None:
            for positions, losses in batches:
                column[positions] = losses
                seen[positions] = True

        ours()
        theirs()
        assert kept.end_epoch().observed == seen.sum()
        np.testing.assert_array_equal(kept.column(0), column)
        job = f"{count:.0e} losses into {n:.0e}, {batch} at a time"
        table.add("-", job, ours, {"numpy, losses and a mask": (theirs, None)})
