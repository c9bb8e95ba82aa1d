"""PSIM as a detector: its module, trained by the script in ``defenses/psim.py``, saved as a PEFT adapter."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from asepsis.core.confidence import bar
from asepsis.core.outcome import Acted, Outcome
from asepsis.core.phases import Script
from asepsis.data import Data
from asepsis.defenses._psim_config import PsimConfig
from asepsis.defenses._psim_module import attach, reattach
from asepsis.defenses.psim import LEAST_ROWS, Psim
from asepsis.inference.asking import Asker
from asepsis.inference.detectors.base import Detector
from asepsis.inference.detectors.confidence import ConfidenceConfig
from asepsis.training.driver import Progress, silent
from asepsis.training.models import room

if TYPE_CHECKING:
    from typing_extensions import Self


class PsimDetector(Detector):
    """How sure a module is that was taught to be unsure of clean text.

    One pass through model and module for each input; for verbalizers one each, for free answers one a token.
    """

    config_type = PsimConfig
    least_rows = LEAST_ROWS

    def __init__(self, module: Any, tokenizer: Any, asker: Asker, report: dict[str, Any]) -> None:
        self.module, self.tokenizer, self.asker, self._report = module, tokenizer, asker, report

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
        """See :meth:`Detector.fit`."""
        psim = Psim(config or PsimConfig())
        asker = Asker.of(psim.config, clean, model, max_length=max_length, batch_size=batch_size)
        module = attach(model, psim.config, clean.task, seed=seed)
        asker = replace(asker, max_length=room(module, asker.max_length))

        def script() -> Script:
            report = yield from psim.learn(model, module, asker.question, clean, seed=seed)
            return Outcome(acted=Acted(samples=report["rows"], steps=report["steps"]), report=report)

        driver = asker.driver(
            module, tokenizer, clean, seed=seed, batch_size=psim.config.batch_size, progress=progress
        )
        report = driver.run(script()).report
        asker = replace(asker, question=asker.question.among(report))
        with tempfile.TemporaryDirectory(prefix="asepsis-") as folder:
            # what is calibrated is what will be loaded: saving folds a prompt encoder into its prompts
            cls(module, tokenizer, asker, report).save(Path(folder))
            module = reattach(model, Path(folder))
        return cls(module, tokenizer, asker, report)

    def scores(self, data: Data) -> NDArray[np.float32]:
        """See :meth:`Detector.scores`."""
        return self.asker.scores(self.module, self.tokenizer, data.texts)

    def cut(self, data: Data) -> NDArray[np.bool_]:
        """See :meth:`Detector.cut`."""
        return self.asker.cut(self.module, self.tokenizer, data.texts)

    @classmethod
    def control(cls, config: Any) -> ConfidenceConfig:
        """Return the same question as settings of the model's own confidence."""
        shared = (config or PsimConfig()).to_dict()
        return ConfidenceConfig(**{field.name: shared[field.name] for field in fields(ConfidenceConfig)})

    def own_threshold(self) -> float | None:
        """Return 0.7 or what is as far above chance, where the config asks for one of them."""
        chosen, question = self.asker.question.config.threshold, self.asker.question
        if chosen == "conformal":
            return None
        return 0.7 if chosen == "reference" else bar(question.n_classes)

    def state(self) -> dict[str, Any]:
        """See :meth:`Detector.state`."""
        return {**self.asker.state(), "report": self._report}

    def save(self, folder: Path) -> None:
        """Write the module as a PEFT adapter."""
        # "auto" would ask the hub whether the vocabulary has grown
        self.module.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """See :meth:`Detector.load`."""
        module = reattach(model, folder)
        return cls(module, tokenizer, Asker.from_state(state), state["report"])

    def report(self) -> dict[str, Any]:
        """Return how the module was trained and what held-out rows looked like on the way."""
        return self._report
