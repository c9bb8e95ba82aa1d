"""What a guard found in a file or data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.core.conformal import Threshold, exceeds
from asepsis.data import Data


@dataclass(frozen=True)
class Checked:
    """Rows judged by a guard.

    Attributes
    ----------
    data : Data
    suspicion : ndarray float32 [N]
        Higher is worse.
    threshold : Threshold
    detector : str
    control_suspicion : ndarray float32 [N] or None
        The model's own confidence, where it was asked for.
    control : Threshold or None
        Its threshold.
    manifest : dict
        The guard's.
    cut : int
        Rows longer than what the guard reads: nothing is said of the rest of them.
    """

    data: Data
    suspicion: NDArray[np.float32]
    threshold: Threshold
    detector: str
    control_suspicion: NDArray[np.float32] | None = None
    control: Threshold | None = None
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)
    cut: int = 0

    @cached_property
    def flagged(self) -> NDArray[np.bool_]:
        """Rows above the threshold, bool [N]."""
        return self.threshold.flags(self.suspicion)

    @property
    def control_flagged(self) -> NDArray[np.bool_] | None:
        """Rows that the model's own confidence flags, where it was asked for."""
        if self.control is None or self.control_suspicion is None:
            return None
        return self.control.flags(self.control_suspicion)

    @cached_property
    def verdict(self) -> Literal["findings", "none"]:
        """Whether more rows are flagged than clean rows would be, see :func:`asepsis.core.conformal.exceeds`.

        ``"none"`` does not say that no row is triggered: every flagged row is worth a look.
        """
        found = exceeds(int(self.flagged.sum()), len(self.data), self.threshold)
        return "findings" if found else "none"

    def split(self) -> tuple[Data | None, Data | None]:
        """Return the rows not flagged and the rows flagged, order kept; None for an empty part."""
        parts = (np.flatnonzero(~self.flagged), np.flatnonzero(self.flagged))
        rest, flagged = (self.data.select(at) if len(at) else None for at in parts)
        return rest, flagged

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``asepsis guard check --json``."""
        rows = zip(self.data.sample_ids.tolist(), self.suspicion.tolist(), self.flagged.tolist(), strict=True)
        control = self.control_flagged
        return {
            "detector": self.detector,
            "verdict": self.verdict,
            "threshold": self.threshold.to_dict(),
            "n": len(self.data),
            "flagged": int(self.flagged.sum()),
            "control_flagged": None if control is None else int(control.sum()),
            "cut": self.cut,
            "rows": [
                {"row": row, "sample_id": i, "suspicion": s, "flagged": f}
                for row, (i, s, f) in enumerate(rows)
            ],
            "manifest": self.manifest,
        }
