"""The probe: what part of the labels a model has learned at each step it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError, ModelError
from asepsis.evaluation.frequency.filter import (
    Bands,
    Kernel,
    checked_sigmas,
    compare,
    default_sigmas,
    low_pass,
    neighbors,
)
from asepsis.evaluation.frequency.inputs import batches, evaluating, pooled_embeddings
from asepsis.training.forward import Precision, autocast, full_precision_head, resolve_precision

SUBSETS = {
    "clean": "clean rows",
    "poisoned": "poisoned rows",
    "clean_same_label": "clean rows of the same label",
}
"""What is read out apart, in words. The last are the clean rows with a label that poisoned rows carry."""


@dataclass(frozen=True)
class Record:
    """One look at the model: numbers by the names of ``SUBSETS``; the last is left out where it is all clean rows."""

    step: int
    subsets: dict[str, Bands]


class FrequencyProbe:
    """Compares the frequency parts of a model's outputs with those of the labels, whenever asked.

    Observing leaves training as it was: no gradients, the modules' modes and the random state restored. The filter
    runs on the CPU in float64.

    Parameters
    ----------
    model, tokenizer
        A sequence classifier. Inputs are embedded when the probe is made, outputs whenever it observes.
    data : Data
        Probe rows, clean and poisoned ones together, with labels as trained on.
    poisoned : ndarray of bool [N]
        Which of them are poisoned, as from ``PoisonKey.for_ids(data.sample_ids)``.
    max_length, batch_size : int
        Tokens kept of each row, and rows per forward.
    sigmas : sequence of float, optional
        Widths of the filter; by default :func:`.filter.default_sigmas`.
    kernel : {"laplace", "gauss"}
        See :func:`.filter.low_pass`.
    precision : {"auto", "fp32", "bf16"}
        Of the model's body; its output layer runs in fp32.

    Attributes
    ----------
    records : list of Record
    sigmas : tuple of float
    inputs : Tensor [N, D]
        Pooled embeddings.

    Raises
    ------
    DataError
        The data is not for classification, ``poisoned`` does not fit it, or one kind of row is missing.
    ConfigError
        A width or the kernel is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        data: Data,
        poisoned: NDArray[np.bool_],
        *,
        max_length: int = 128,
        sigmas: Sequence[float] | None = None,
        kernel: Kernel = "laplace",
        batch_size: int = 128,
        precision: Precision = "auto",
    ) -> None:
        labels = class_labels(data)
        self.subsets = _subsets(labels, np.asarray(poisoned))
        self.model, self.tokenizer, self.data = model, tokenizer, data
        self.max_length, self.batch_size, self.precision = max_length, batch_size, precision
        self.kernel = kernel
        # centered, because distances come from products and lose digits to a shared offset
        inputs = pooled_embeddings(model, tokenizer, data, max_length=max_length, batch_size=batch_size)
        self.inputs = inputs - inputs.mean(dim=0)
        self.sigmas = default_sigmas(self.inputs, kernel=kernel) if sigmas is None else checked_sigmas(sigmas)
        self.neighbors = neighbors(self.inputs, self.sigmas, kernel=kernel)
        self.records: list[Record] = []
        self._answers = nn.functional.one_hot(torch.from_numpy(labels), data.n_classes or 2).double()
        self._low_answers = low_pass(self.inputs, self._answers, self.sigmas, kernel=kernel)

    def observe(self, step: int) -> Record:
        """Run the model over the probe rows and append what is found to ``records``, as after ``step`` steps."""
        if self.records and step <= self.records[-1].step:
            raise ConfigError(f"steps must rise: got {step} after {self.records[-1].step}")
        record = Record(step, self._measure(self._outputs()))
        self.records.append(record)
        return record

    def converged_at(self, level: float, *, sigma: float | None = None) -> dict[str, int | None]:
        """Return per subset the first observed step with ``e_low`` below ``level``; None where there is none.

        ``sigma`` is one of ``sigmas``, by default the middle one.
        """
        if not level > 0:
            raise ConfigError(f"level must be positive, got {level!r}")
        at = self._index(sigma)
        first: dict[str, int | None] = dict.fromkeys(self.subsets)
        for record in reversed(self.records):
            first.update({name: record.step for name, b in record.subsets.items() if b.e_low[at] < level})
        return first

    def verdict(self, level: float, *, sigma: float | None = None) -> str:
        """Return :meth:`converged_at` as a sentence."""
        steps = self.converged_at(level, sigma=sigma)
        told = [
            f"of {SUBSETS[name]} " + ("not at all" if step is None else f"at step {step}")
            for name, step in steps.items()
        ]
        at = self._index(sigma)
        return (
            f"The low-frequency part (sigma {self.sigmas[at]:.3g}, about {self.neighbors[at]:.0f} of "
            f"{len(self.data)} rows) comes within {level:g} of the labels': " + ", ".join(told) + "."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything JSON-ready; NaN, which JSON does not know, as None."""
        labels = {name: bands.to_dict() for name, bands in self._measure(self._answers).items()}
        return {
            "kernel": self.kernel,
            "sigmas": list(self.sigmas),
            "neighbors": [round(float(x), 2) for x in self.neighbors],
            "rows": {name: int(mask.sum()) for name, mask in self.subsets.items()},
            "labels": {name: {"lfr": b["lfr"], "hfr": b["hfr"]} for name, b in labels.items()},
            "records": [
                {"step": r.step, "subsets": {name: bands.to_dict() for name, bands in r.subsets.items()}}
                for r in self.records
            ],
        }

    def _index(self, sigma: float | None) -> int:
        if sigma is None:
            return len(self.sigmas) // 2
        if sigma not in self.sigmas:
            raise ConfigError(f"sigma must be one of the probe's, {list(self.sigmas)}, got {sigma!r}")
        return self.sigmas.index(sigma)

    @torch.no_grad()
    def _outputs(self) -> Tensor:
        """Softmax outputs, float64 [N, C]."""
        out = torch.zeros_like(self._answers)
        device = next(self.model.parameters()).device
        dtype = resolve_precision(self.precision, device)
        with evaluating(self.model), autocast(device, dtype), full_precision_head(self.model):
            for at, batch in batches(self.model, self.tokenizer, self.data, self.max_length, self.batch_size):
                logits = self.model(**batch.to(device).inputs).logits
                if logits.shape != (len(at), out.shape[1]):
                    raise ModelError(
                        f"expected logits [{len(at)}, {out.shape[1]}], one a row and class, got {list(logits.shape)}"
                    )
                out[at] = logits.double().softmax(dim=1).cpu()
        return out

    def _measure(self, outputs: Tensor) -> dict[str, Bands]:
        low = low_pass(self.inputs, outputs, self.sigmas, kernel=self.kernel)
        found = {}
        for name, mask in self.subsets.items():
            rows = torch.from_numpy(mask)
            found[name] = compare(
                outputs[rows], low[:, rows], self._answers[rows], self._low_answers[:, rows]
            )
        return found


def class_labels(data: Data) -> NDArray[np.int64]:
    """Return the labels, or raise ``DataError`` where rows have responses instead."""
    if data.task != "classification" or data.labels is None:
        raise DataError(
            f"{data.source}: frequency parts are defined for classification, where outputs and labels are vectors of "
            "one length; this data set has responses. Give rows with a label column and a sequence classifier"
        )
    return data.labels


def _subsets(labels: NDArray[np.int64], poisoned: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    if poisoned.dtype != bool or poisoned.shape != labels.shape:
        raise DataError(
            f"poisoned must be boolean, one per row: got {poisoned.dtype} of shape {poisoned.shape} "
            f"for {len(labels)} rows"
        )
    if poisoned.all() or not poisoned.any():
        raise DataError(
            f"the probe compares clean with poisoned rows and needs both; {int(poisoned.sum())} of {len(poisoned)} "
            "rows are poisoned"
        )
    subsets = {"clean": ~poisoned, "poisoned": poisoned}
    same = ~poisoned & np.isin(labels, labels[poisoned])
    if same.any() and not np.array_equal(same, ~poisoned):
        subsets["clean_same_label"] = same
    return subsets
