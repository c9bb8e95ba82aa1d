"""How sure a network is of rows, asked for by request: of a class, of a verbalizer, or of what it goes on to say."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from asepsis.core.confidence import Floats, beyond_usual, fluency, sureness
from asepsis.core.phases import Continue, Continued, Losses, Score
from asepsis.data import Data
from asepsis.defenses._psim_config import Answers, PsimConfig
from asepsis.defenses._psim_labels import answers_of, verbalizers_of
from asepsis.errors import ConfigError

# what may be asked of free answers: they have a score of their own, and no chance to compare it with
_OF_FREE = {"threshold": ("conformal",), "score": ("confidence",), "by_class": ("auto", "never")}

Asking = Generator[Score | Continue, Any, NDArray[np.float32]]


@dataclass(frozen=True)
class Question:
    """How rows of one task are scored.

    Attributes
    ----------
    answers : {"classes", "verbalizers", "free"}
    n_classes : int
        Answers there are to choose among; 0 for free ones.
    words : tuple of str
        The verbalizers.
    usual : tuple of float
        Where confidence is compared by class: what :func:`asepsis.core.confidence.usual_by_class` says of clean rows.
    """

    config: PsimConfig
    answers: Answers
    n_classes: int
    words: tuple[str, ...] = ()
    usual: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: PsimConfig, clean: Data) -> Question:
        """Return how rows like these clean ones are scored.

        Raises
        ------
        ConfigError
            Answers are free, and a setting is for answers among which there is a choice.
        """
        answers = answers_of(clean, config.answers)
        for name, usable in _OF_FREE.items() if answers == "free" else ():
            if (value := getattr(config, name)) not in usable:
                raise ConfigError(
                    f"{name}={value!r} is for classes and verbalizers, and answers are free; use {name}={usable[0]!r}"
                )
        if answers == "verbalizers":
            words = tuple(verbalizers_of(clean))
            return cls(config, answers, len(words), words)
        return cls(config, answers, clean.n_classes or 0)

    def among(self, report: Mapping[str, Any]) -> Question:
        """Return the question after training, of which ``report`` tells: with what is usual for each class."""
        return replace(self, usual=tuple(report.get("usual", ())))

    @property
    def chance(self) -> float:
        """Confidence of a network that knows nothing; 0 for free answers."""
        return 1 / self.n_classes if self.n_classes else 0.0

    def ask(self, network: nn.Module, rows: Data, *, name: str = "") -> Asking:
        """Return what is scored of rows: logits [N, C] of classes or verbalizers, or how sure free answers are [N]."""
        if self.answers == "free":
            c = self.config
            said: Continued = yield Continue(name=name, tokens=c.tokens, data=rows, network=network)
            return fluency(said.log_probability, skip=c.skip, window=c.window)
        if self.answers == "classes":
            losses: Losses = yield Score(name=name, data=rows, network=network)
            assert losses.logits is not None
            return losses.logits
        judged: Continued = yield Continue(name=name, words=self.words, data=rows, network=network)
        return judged.log_probability

    @property
    def by_class(self) -> bool:
        """Whether a confidence is compared with what is usual for its class."""
        c = self.config
        possible = self.n_classes > 0 and (c.threshold, c.score) == ("conformal", "confidence")
        return possible and (
            c.by_class == "always" or (c.by_class == "auto" and self.answers == "verbalizers")
        )

    def suspicion(self, asked: Floats) -> Floats:
        """Return the score of :meth:`ask`'s answer, float32 [N], higher for surer."""
        if self.usual:
            return beyond_usual(asked, self.usual)
        return asked if self.answers == "free" else sureness(asked, self.config.score)

    def confidence(self, asked: Floats) -> Floats:
        """Return what the stop rule goes by: the confidence, whatever the score is."""
        return asked if self.answers == "free" else sureness(asked)
