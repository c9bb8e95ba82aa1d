"""The model's own confidence, without any module: the control that every module has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.core.confidence import Measure
from asepsis.data import Data
from asepsis.defenses._psim_config import PsimConfig
from asepsis.defenses.base import DefenseConfig
from asepsis.inference.asking import Asker
from asepsis.inference.detectors.base import Detector
from asepsis.training.driver import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig(DefenseConfig):
    """What is measured; the fields mean what they do in :class:`~asepsis.defenses._psim_config.PsimConfig`."""

    score: Measure = "confidence"
    answers: Literal["auto", "verbalizers", "free"] = "auto"
    tokens: int = 12
    skip: int = 2
    window: int = 4

    def asked(self) -> PsimConfig:
        """Return it as settings of PSIM, which asks in the same way."""
        return PsimConfig(**self.to_dict())


class Confidence(Detector):
    """How sure the guarded model is: surer is more suspicious."""

    config_type = ConfidenceConfig

    def __init__(self, model: Any, tokenizer: Any, asker: Asker) -> None:
        self.model, self.tokenizer, self.asker = model, tokenizer, asker

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        clean: Data,
        *,
        config: Any = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Self:
        """See :meth:`Detector.fit`; nothing is learned, the clean rows say how the task is answered."""
        del seed, progress
        chosen = (config or ConfidenceConfig()).asked()
        asker = Asker.of(chosen, clean, model, max_length=max_length, batch_size=batch_size)
        return cls(model, tokenizer, asker)

    def scores(self, data: Data) -> NDArray[np.float32]:
        """See :meth:`Detector.scores`."""
        return self.asker.scores(self.model, self.tokenizer, data.texts)

    def cut(self, data: Data) -> NDArray[np.bool_]:
        """See :meth:`Detector.cut`."""
        return self.asker.cut(self.model, self.tokenizer, data.texts)

    def state(self) -> dict[str, Any]:
        """See :meth:`Detector.state`."""
        return self.asker.state()

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """See :meth:`Detector.load`."""
        del folder
        return cls(model, tokenizer, Asker.from_state(state))
