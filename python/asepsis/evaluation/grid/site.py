"""What an entry of the grid works with, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asepsis.core.phases import Outcome
from asepsis.evaluation.grid.sources import Sources
from asepsis.inference.guard import Guard
from asepsis.training import Run
from asepsis.training.settings import Settings

#: Share of clean inputs that every guard of a grid may flag.
TARGET_FPR = 0.05


@dataclass(frozen=True)
class Made:
    """What an entry made.

    Attributes
    ----------
    model, tokenizer
    outcome : Outcome or None
        Of a training under a defense; None for the rest.
    guard : Guard or None
        In front of the model.
    manifest : dict
    """

    model: Any
    tokenizer: Any
    outcome: Outcome | None
    guard: Guard | None
    manifest: dict[str, Any]

    @classmethod
    def of(cls, run: Run, *, judged: bool = True) -> Made:
        """Return what a training made; with ``judged`` off, what it found is of no interest."""
        return cls(run.model, run.tokenizer, run.outcome if judged else None, None, run.manifest)


@dataclass(frozen=True)
class Site:
    """What an entry works with: ``undefended()`` gives the folder of the undefended model of the same attack and seed."""

    model: str
    rows: Sources
    settings: Settings
    undefended: Callable[[], Path]

    def guarded(self, network: Any, tokenizer: Any, detector: Any) -> Guard:
        """Return a guard in front of a model, fitted on the trusted rows."""
        return Guard.fit(
            network,
            self.rows.clean,
            detector=detector,
            processing_class=tokenizer,
            target_fpr=TARGET_FPR,
            seed=self.settings.seed,
            max_length=self.settings.max_length,
        )
