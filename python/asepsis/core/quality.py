"""How well a model does on clean rows: what epochs are compared by, and what a guard on a repaired model asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quality:
    """Of a model on some rows.

    Attributes
    ----------
    rows : int
    accuracy : float or None
        Share of rows whose class is predicted; None for causal LMs.
    loss : float
        Nats per target, over all targets.
    """

    rows: int
    accuracy: float | None
    loss: float

    @classmethod
    def of(
        cls,
        total: NDArray[np.float32],
        count: NDArray[np.int64],
        correct: NDArray[np.bool_] | None,
        at: NDArray[np.int64],
    ) -> Quality:
        """Sum up losses (see :class:`asepsis.core.phases.Losses`) over the rows at these positions."""
        targets = int(count[at].sum())
        loss = float(total[at].astype(np.float64).sum()) / targets if targets else math.nan
        return cls(len(at), None if correct is None else float(correct[at].mean()), loss)

    @classmethod
    def mean(cls, several: list[Quality]) -> Quality:
        """Return the mean of equally many rows each."""
        accuracies = [q.accuracy for q in several if q.accuracy is not None]
        accuracy = sum(accuracies) / len(accuracies) if accuracies else None
        return cls(several[0].rows, accuracy, sum(q.loss for q in several) / len(several))

    @property
    def standard_error(self) -> float | None:
        """Of the accuracy, by the binomial; None for causal LMs."""
        return None if self.accuracy is None else math.sqrt(self.accuracy * (1 - self.accuracy) / self.rows)

    def better_than(self, other: Quality) -> bool:
        """Whether the accuracy is higher, or the same at a lower loss; causal LMs go by the loss. NaN is worst."""
        return self._key() < other._key()

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready; a loss that is not finite is None."""
        return {
            "rows": self.rows,
            "accuracy": self.accuracy,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }

    def _key(self) -> tuple[float, float]:
        return -(self.accuracy or 0.0), math.inf if math.isnan(self.loss) else self.loss
