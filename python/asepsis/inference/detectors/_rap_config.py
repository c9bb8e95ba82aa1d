"""Settings of RAP."""

from __future__ import annotations

from dataclasses import dataclass

from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError
from asepsis.inference.detectors._checks import at_least


@dataclass(frozen=True, kw_only=True)
class RapConfig(DefenseConfig):
    """Settings of RAP.

    Attributes
    ----------
    target_label : int or None
        The class to protect; None for every class.
    drop_low, drop_high : float
        Drop of probability wanted on clean rows; 0.1 and 0.3 as recalled from the paper.
    low_scale : float
        Weight of too small a drop against too large a one; 1 as recalled from the paper.
    steps : int
        Steps of the training of each vector.
    step_size : float
        Of Adam, as a share of the vector's root mean square.
    step_rows : int
        Rows in one step.
    """

    target_label: int | None = None
    drop_low: float = 0.1
    drop_high: float = 0.3
    low_scale: float = 1.0
    steps: int = 150
    step_size: float = 0.1
    step_rows: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps, step_rows=self.step_rows)
        if not 0 < self.drop_low < self.drop_high <= 1:
            raise ConfigError(
                f"0 < drop_low < drop_high <= 1 must hold, got {self.drop_low!r} and {self.drop_high!r}; "
                "the paper's are 0.1 and 0.3"
            )
        for name in ("low_scale", "step_size"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
