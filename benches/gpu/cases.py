"""What a bench says about itself: what must be right first, what is compared, what is only looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that has to be small before any time is worth reading."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        # a NaN is no pass
        return self.error <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Target:
    """A wanted ratio of two sides' medians: ``time(of) / time(to)``, at least or at most ``bound``."""

    goal: str
    of: str
    to: str
    bound: float
    wanted: Literal["at least", "at most"] = "at least"

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.wanted == "at least" else ratio <= self.bound


@dataclass(frozen=True, kw_only=True)
class Case:
    """Several ways of the same work on the same inputs, timed in turns.

    ``make`` puts the inputs on the device and returns the sides, by name; it is called when the case is due, and what it
    made is dropped before the next. ``graph`` times replays of a captured CUDA graph as well; a side that cannot be
    captured is reported as such.
    """

    name: str
    why: str
    make: Callable[[], Mapping[str, Work]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    graph: bool = True
    rounds: int = 50


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A measurement that is no comparison of times: memory, launches, equal bits. ``run`` returns what JSON can hold."""

    name: str
    why: str
    run: Callable[[], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Module(Protocol):
    """What a module named in the registry has."""

    def verify(self) -> Iterator[Check]:
        """Compare on the device with float64; the cases are skipped when one fails."""

    def cases(self) -> Iterator[Case | Probe]:
        """What to measure, most wanted first: what the time does not reach is listed as not reached."""
