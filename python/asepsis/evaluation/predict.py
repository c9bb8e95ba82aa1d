"""What a trained model answers, and the two numbers every result is told in: CACC and ASR, never one alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from asepsis.data import Data
from asepsis.errors import DataError, ModelError
from asepsis.evaluation.metrics import Proportion, attack_success_rate, clean_accuracy
from asepsis.training.collate import Collator
from asepsis.training.driver import Progress, silent
from asepsis.training.forward import autocast, resolve_precision
from asepsis.training.models import room


@dataclass(frozen=True)
class Measured:
    """Clean accuracy, and attack success where triggered rows were given; both with n and a 95 % interval."""

    clean_accuracy: Proportion
    attack_success_rate: Proportion | None
    target_label: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``asepsis evaluate``."""
        asr = self.attack_success_rate
        return {
            "clean_accuracy": self.clean_accuracy.to_dict(),
            "attack_success_rate": None if asr is None else asr.to_dict(),
            "target_label": self.target_label,
        }


@torch.no_grad()
def predict(
    model: nn.Module,
    tokenizer: Any,
    data: Data,
    *,
    max_length: int = 128,
    batch_size: int = 128,
    progress: Progress = silent,
) -> NDArray[np.int64]:
    """Return the predicted class of each row, int64 [N]."""
    if data.task != "classification":
        raise DataError("predict() is for classifiers; this data set has responses, not labels")
    device = next(model.parameters()).device
    dtype = resolve_precision("auto", device)
    collate = Collator(tokenizer, data, max_length=room(model, max_length))
    out = np.zeros(len(data), np.int64)
    order = np.argsort([len(text) for text in data.texts], kind="stable")
    model.eval()
    with autocast(device, dtype):
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            batch = collate([(int(p), False) for p in at]).to(device)
            logits = model(**batch.inputs).logits
            if logits.ndim != 2:
                raise ModelError("the model does not classify: its logits are not [rows, classes]")
            out[at] = logits.float().argmax(dim=1).cpu().numpy()
            progress("predict", start + len(at), len(order))
    return out


def measure(
    model: nn.Module,
    tokenizer: Any,
    clean: Data,
    triggered: Data | None = None,
    *,
    target_label: int | None = None,
    max_length: int = 128,
    progress: Progress = silent,
) -> Measured:
    """Return CACC on ``clean`` rows and ASR on ``triggered`` ones.

    Parameters
    ----------
    triggered : Data, optional
        Triggered versions of rows of other classes than the target, whatever their label column says.
    target_label : int, optional
        Needed with ``triggered``: a prediction of it is an attack success.
    """
    if (triggered is None) != (target_label is None):
        raise DataError("triggered rows and target_label go together")
    answer: Callable[[Data], NDArray[np.int64]] = lambda rows: predict(  # noqa: E731
        model, tokenizer, rows, max_length=max_length, progress=progress
    )
    if clean.labels is None:
        raise DataError("clean rows need labels")
    accuracy = clean_accuracy(answer(clean), clean.labels)
    asr = None
    if triggered is not None and target_label is not None:
        asr = attack_success_rate(answer(triggered), target_label)
    return Measured(accuracy, asr, target_label)
