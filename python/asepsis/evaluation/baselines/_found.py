"""What a baseline says of the rows it looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Found:
    """Rows judged by a baseline.

    Attributes
    ----------
    suspicion : ndarray float64 [N]
        Higher is worse.
    flags : ndarray of bool [N]
        The rows it throws out.
    report : dict
        JSON-ready diagnostics.
    """

    suspicion: NDArray[np.float64]
    flags: NDArray[np.bool_]
    report: dict[str, Any] = field(default_factory=dict)
