"""Ask a network how sure it is of texts, outside of any training: what detectors by confidence share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from asepsis.core.phases import Continue
from asepsis.data import Data
from asepsis.data.values import shown
from asepsis.defenses._psim_config import Answers, PsimConfig
from asepsis.defenses._psim_scores import Question
from asepsis.errors import CheckpointError
from asepsis.inference.lengths import token_counts
from asepsis.training.decode import followed
from asepsis.training.driver import Progress, silent
from asepsis.training.forward import Precision, resolve_precision
from asepsis.training.loop import LoopDriver
from asepsis.training.models import room
from asepsis.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Asker:
    """How texts are put to a network: cut, batched, and in the precision that the threshold was calibrated in.

    Attributes
    ----------
    question : Question
    max_length, batch_size : int
    precision : {"fp32", "bf16"}
    """

    question: Question
    max_length: int
    batch_size: int
    precision: Precision

    @classmethod
    def of(
        cls, config: PsimConfig, clean: Data, model: nn.Module, *, max_length: int, batch_size: int
    ) -> Asker:
        """Return what asks rows like these clean ones of a model."""
        dtype = resolve_precision("auto", next(model.parameters()).device)
        return cls(
            question=Question.of(config, clean),
            max_length=max_length,
            batch_size=batch_size,
            precision="bf16" if dtype == torch.bfloat16 else "fp32",
        )

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Asker:
        """Build from :meth:`state`."""
        answers, words = state["answers"], tuple(state["words"])
        if answers not in get_args(Answers) or not all(isinstance(word, str) for word in words):
            raise CheckpointError(
                f"no question has the answers {shown(answers)}, {shown(words)}; fit the guard again"
            )
        n_classes = int(state["n_classes"])
        if (n_classes < 2 and answers == "classes") or (answers == "verbalizers" and n_classes != len(words)):
            raise CheckpointError(f"no question has {n_classes} {answers}; fit the guard again")
        usual = tuple(map(float, state.get("usual", ())))
        if len(usual) not in (0, n_classes):
            raise CheckpointError(
                f"{n_classes} classes have {len(usual)} usual confidences; fit the guard again"
            )
        question = Question(PsimConfig.from_dict(state["config"]), answers, n_classes, words, usual)
        return cls(
            question=question,
            max_length=int(state["max_length"]),
            batch_size=int(state["batch_size"]),
            precision=state["precision"],
        )

    def state(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        q = self.question
        return {
            "config": q.config.to_dict(),
            "answers": q.answers,
            "n_classes": q.n_classes,
            "words": list(q.words),
            "usual": list(q.usual),
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }

    def driver(
        self,
        network: nn.Module,
        tokenizer: Any,
        data: Data,
        *,
        seed: int = 0,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> LoopDriver:
        """Return a driver for a network, which stays on its device."""
        settings = Settings(
            batch_size=batch_size,
            eval_batch_size=self.batch_size,
            max_length=self.max_length,
            precision=self.precision,
            device=str(next(network.parameters()).device),
            seed=seed,
        )
        return LoopDriver(network, tokenizer, data, settings, progress=progress)

    def rows(self, texts: Sequence[str]) -> Data:
        """Return texts as rows of the task, under answers that nobody reads."""
        if self.question.answers == "classes":
            labels = np.zeros(len(texts), np.int64)
            return Data(task="classification", texts=texts, labels=labels, n_classes=self.question.n_classes)
        return Data(task="causal", texts=texts, responses=[""] * len(texts))

    def cut(self, network: nn.Module, tokenizer: Any, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which texts are longer than what is read of them, bool [N]."""
        if self.question.answers == "classes":
            return token_counts(tokenizer, texts) > self.max_length
        rows, q = self.rows(texts), self.question
        asked = Continue(name="", words=q.words, tokens=0 if q.words else q.config.tokens)
        collate = self.driver(network, tokenizer, rows).rows_of(rows)
        _, longest = followed(collate, asked, room(network, self.max_length + asked.tokens))
        read = [min(longest, len(ids)) for ids in collate.read_ids(range(len(rows)), part="inputs")]
        return token_counts(tokenizer, texts, prompts=True) > np.asarray(read)

    def scores(self, network: nn.Module, tokenizer: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return how suspicious each text is by this network, float32 [N]."""
        rows = self.rows(texts)
        driver = self.driver(network, tokenizer, rows)
        return self.question.suspicion(driver.converse(self.question.ask(network, rows)))
