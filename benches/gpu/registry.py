"""The benches ``python -m benches.gpu`` runs, in this order. A new one is a module with ``verify`` and ``cases``, and a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bench:
    """``seconds`` is its share of the eight minutes; a case begun in time is finished."""

    name: str
    module: str
    seconds: float
    about: str


BENCHES: tuple[Bench, ...] = ()
