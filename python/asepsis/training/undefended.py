"""The control: plain fine-tuning, in the same drivers and the same form as a defense."""

from __future__ import annotations

import numpy as np

from asepsis.core.phases import Acted, Ids, Outcome, Script, Train


def undefended(n: int, rows: Ids | None = None) -> Script:
    """Train on all rows, or on the given ones, and defend nothing.

    Parameters
    ----------
    n : int
        Rows of the data set.
    rows : ids or None
        Rows to train on. The evaluation layer uses this for the clean-only model.
    """
    trained = yield Train(name="train", rows=rows)
    return Outcome(
        acted=Acted(samples=n if rows is None else len(rows), steps=trained.steps),
        flagged=np.empty(0, np.int64),
        report={"loss": trained.loss},
    )
