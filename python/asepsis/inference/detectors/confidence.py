"""The model's own confidence: the control that every detector has to beat.

No paper. Backdoored models are sure of triggered inputs, so the largest softmax probability of the model itself, with no
module and no perturbation, is a detector already; whatever costs more has to do better than it. The score is the
log-odds ``ln(p / (1 - p))`` of that probability: the same order as ``p``, without the ties where fp32 rounds ``p`` to 1.

One forward pass per input.

When not to trust it: nearly always. A fine-tuned classifier is as sure of most clean inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.data.dataset import Task
from asepsis.defenses.base import DefenseConfig
from asepsis.inference.detectors._answers import Answers, log_odds_of_best
from asepsis.inference.detectors._checks import of_task
from asepsis.inference.detectors.base import Detector
from asepsis.training.driver import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig(DefenseConfig):
    """Settings of the control.

    Attributes
    ----------
    label_words : tuple of str
        Causal LMs: the answers to be told apart, by their first tokens. Without them, the whole vocabulary.
    """

    label_words: tuple[str, ...] = ()


class Confidence(Detector):
    """Suspicion is the log-odds of the model's largest probability, float32.

    Parameters
    ----------
    model, tokenizer
        What is guarded.
    task : {"classification", "causal"}
    config : ConfidenceConfig, optional
    max_length, batch_size : int
        Tokens read of each input; inputs in one forward pass.
    """

    config_type: ClassVar[type[DefenseConfig]] = ConfidenceConfig

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        task: Task,
        config: ConfidenceConfig | None = None,
        max_length: int = 128,
        batch_size: int = 32,
    ) -> None:
        self.config = ConfidenceConfig() if config is None else config
        self.task: Task = task
        self._answers = Answers(
            model=model,
            tokenizer=tokenizer,
            task=task,
            label_words=self.config.label_words,
            max_length=max_length,
            batch_size=batch_size,
        )

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        clean: Data,
        *,
        config: ConfidenceConfig | None = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Self:
        """Return a detector for the task of ``clean``; nothing is learned and nothing drawn."""
        return cls(
            model,
            tokenizer,
            task=clean.task,
            config=config,
            max_length=max_length,
            batch_size=batch_size,
        )

    def scores(self, data: Data) -> NDArray[np.float32]:
        """Return suspicion [N]."""
        of_task(data, self.task, self.name)
        return self._answers.read(data.texts, log_odds_of_best).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return settings and task."""
        return {"config": self.config.to_dict(), "task": self.task, **self._answers.limits()}

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """Return the detector that :meth:`state` describes."""
        return cls(
            model,
            tokenizer,
            task=state["task"],
            config=ConfidenceConfig.from_dict(state["config"]),
            max_length=state["max_length"],
            batch_size=state["batch_size"],
        )
