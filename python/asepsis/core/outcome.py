"""What a defense hands back: on how much it acted, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Acted:
    """On how much a defense acted. All zeros is an error, see :class:`asepsis.errors.DefenseInert`."""

    samples: int = 0
    tokens: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a defense hands back.

    Attributes
    ----------
    acted : Acted
        How much it looked at and did.
    suspicion : ndarray float32 [N] or None
        Per row in row order, higher is worse.
    flagged : ids
        Rows the defense itself would drop.
    isolated : ids
        Rows it unlearned.
    edited : ids
        Tokens whose word embeddings it overwrote, as ids.
    evidence : dict
        Arrays that a report draws, by the names of :mod:`asepsis.core.evidence`.
    report : dict
        JSON-ready diagnostics, described by the defense.
    """

    acted: Acted
    suspicion: NDArray[np.float32] | None = None
    flagged: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    isolated: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    edited: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    evidence: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    report: dict[str, Any] = field(default_factory=dict)
