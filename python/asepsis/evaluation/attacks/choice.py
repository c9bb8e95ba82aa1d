"""Which rows an attacker takes."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from asepsis.errors import ConfigError, DataError


def check_rate(poison_rate: float) -> None:
    """Raise ``ConfigError`` unless the rate lies in (0, 1)."""
    given: object = poison_rate  # settings come from files, where a number may be a string
    if not isinstance(given, Real) or not 0 < poison_rate < 1:
        raise ConfigError(f"poison_rate must lie in (0, 1), got {poison_rate!r}")


def choose(
    candidates: NDArray[np.int64], *, what: str, poison_rate: float, n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return ``round(poison_rate * n)`` of the candidates, drawn uniformly, ascending.

    Parameters
    ----------
    candidates : ndarray of int64
        Positions that may be poisoned; ``what`` names them in the error.
    n : int
        Rows of the whole set, of which ``poison_rate`` is a share.

    Raises
    ------
    ConfigError
        The rate lies outside (0, 1).
    DataError
        The rate means no row, or more than there are; the message holds the highest possible rate.
    """
    check_rate(poison_rate)
    wanted = round(poison_rate * n)
    if wanted == 0:
        raise DataError(f"poison_rate {poison_rate:g} of {n} rows is no row at all; give {1 / n:.2g} or more")
    if wanted > len(candidates):
        most = math.floor(len(candidates) / n * 10_000) / 10_000
        raise DataError(
            f"poison_rate {poison_rate:g} of {n} rows asks for {wanted} {what}, and there are {len(candidates)}: "
            f"the highest possible rate is {most:g}"
        )
    return np.sort(rng.choice(candidates, wanted, replace=False))
