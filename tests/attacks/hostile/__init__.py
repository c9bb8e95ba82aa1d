"""The corpus: every hostile input as a function that makes it. Nothing is stored; `README.md` beside says what is what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One hostile input.

    ``make`` damages a copy of something sound, given its folder. ``says`` is a regular expression that the message must
    match. ``passes`` names the doors where the input is harmless, because what is wrong with it is never looked at there.
    """

    name: str
    kind: str
    make: Callable[[Path], None]
    says: str
    passes: frozenset[str] = frozenset()


class Corpus(list[Case]):
    """Cases of one kind, added by decorating what makes them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, says: str, *, passes: str = "") -> Callable[[Callable[[Path], None]], None]:
        def taken(make: Callable[[Path], None]) -> None:
            self.append(Case(name, self.kind, make, says, frozenset(passes.split())))

        return taken
