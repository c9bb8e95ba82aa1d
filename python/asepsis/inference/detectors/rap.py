"""RAP: a word that makes the model doubt clean inputs, and triggered ones less.

Paper: "RAP: Robustness-Aware Perturbations for Defending against Backdoor Attacks on NLP Models" (Yang et al., EMNLP
2021, arXiv 2110.07831).

Certain, from the abstract and a figure's caption: a word-based perturbation tells poisoned samples from clean ones by a
gap of robustness; the word goes to the first position, so that it is never cut off, both when it is made and when it is
used; ``delta = p(x; y_T) - p(x + word; y_T)``. Recalled and not checked against the paper's text: the word's embedding
alone is trained, on clean rows of the target class, so that ``delta`` lies between 0.1 and 0.3; a learning rate of
0.01 for 5 epochs; the bar is a low quantile of ``delta`` on clean rows of the target class; inputs that the model does not
take for the target class are let through.

Algorithm here. For each class ``t`` that is protected: rows of class ``t`` that the model takes for ``t``; minimize the mean
of ``low_scale * max(0, drop_low - delta) + max(0, delta - drop_high)`` over the word's vector alone. An input that the
model takes for ``t`` has suspicion ``-delta`` with that class's vector.

Deviations
----------
* The paper takes a rare word and trains its row. Here the word is none of the vocabulary's: only its vector exists, and
  is exchanged while the model reads, at its place. No weight is written. A rare word's own row may be the attacker's.
* The vector starts at the mean direction of all word vectors and keeps their median length.
* Without ``target_label`` every class is protected, each with a vector of its own: a target is rarely known.
* Adam, with a step relative to the size of the vector, for a fixed number of steps.
* An input taken for a class that is not protected has suspicion -2, below every other.

Cost: two forward passes per input. Fitting: ``steps`` forward and backward passes of ``step_rows`` rows per class.

When not to trust it
--------------------
Classifiers only. A model that is hard to move on clean rows of a class (a default class, few classes, saturated logits)
has clean inputs that move as little as triggered ones; fitting raises where the mean drop stays below half of ``drop_low``.
An attacker who trains against perturbation of the embeddings, or a trigger that only tips the balance, has a drop like
a clean input's. Few clean rows of a class overfit the vector.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asepsis.core.weights.folders import inside
from asepsis.core.weights.headers import read_header
from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import CheckpointError, ConfigError, DefenseInert, MissingReference
from asepsis.inference.detectors._answers import evaluating
from asepsis.inference.detectors._checks import of_task
from asepsis.inference.detectors._rap_config import RapConfig
from asepsis.inference.detectors._rap_row import Prober
from asepsis.inference.detectors._rap_training import Trained, train_word
from asepsis.inference.detectors.base import Detector
from asepsis.inference.lengths import token_counts
from asepsis.training.driver import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Self

_FILE = "rap.safetensors"
_UNPROTECTED = -2.0  # -delta lies in [-1, 1]


class Rap(Detector):
    """Suspicion is minus the drop of the predicted class's probability when the word is put first, float32.

    Parameters
    ----------
    model, tokenizer
        What is guarded.
    vectors : mapping of int to Tensor [D]
        The word's vector for each protected class.
    config : RapConfig, optional
    max_length, batch_size : int
        Tokens read of each input, the word included; rows in one forward pass.
    """

    config_type: ClassVar[type[DefenseConfig]] = RapConfig
    least_rows: ClassVar[int] = 32

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        vectors: dict[int, Tensor],
        config: RapConfig | None = None,
        max_length: int = 128,
        batch_size: int = 32,
    ) -> None:
        self.config = RapConfig() if config is None else config
        self._prober = Prober.of(model, tokenizer, max_length=max_length, batch_size=batch_size)
        self.vectors = {c: v.detach().float().cpu() for c, v in sorted(vectors.items())}
        self._fit: dict[str, Any] = {}

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        clean: Data,
        *,
        config: RapConfig | None = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Self:
        """Train the word's vector for each protected class; ``seed`` decides the batches.

        Raises
        ------
        ConfigError
            The rows are not for classification, or there is no class ``target_label``.
        MissingReference
            A protected class has no clean row that the model takes for it.
        DefenseInert
            The trained word moves the clean rows too little to tell anything.
        """
        chosen = RapConfig() if config is None else config
        if clean.task != "classification" or clean.labels is None or clean.n_classes is None:
            raise ConfigError(
                "RAP lowers the probability of a class and supports classifiers only; for causal LMs use the detector "
                "'onion' or 'strip'"
            )
        if chosen.target_label is not None and not 0 <= chosen.target_label < clean.n_classes:
            raise ConfigError(
                f"target_label must lie in 0..{clean.n_classes - 1}, got {chosen.target_label!r}"
            )
        limits = {"max_length": max_length, "batch_size": batch_size}
        prober = Prober.of(model, tokenizer, **limits)
        with evaluating(prober.model):
            words = _words(prober, clean, chosen, seed, progress)
        vectors = {label: word.vector for label, word in words.items()}
        made = cls(model, tokenizer, vectors=vectors, config=chosen, **limits)
        made._fit = {
            "mean_drop": {str(label): word.drop for label, word in words.items()},
            "rows": {str(label): word.rows for label, word in words.items()},
        }
        return made

    def scores(self, data: Data) -> NDArray[np.float32]:
        """Return suspicion [N]; -2 for inputs of a class that is not protected."""
        of_task(data, "classification", self.name)
        rows = self._prober.encode(data.texts)
        out = np.full(len(rows), _UNPROTECTED, np.float64)
        with evaluating(self._prober.model):
            top, taken_for = self._prober.probabilities(rows).max(dim=1)
            at = np.flatnonzero(np.isin(taken_for.numpy(), list(self.vectors)))
            if len(at):
                labels = taken_for[at]
                vectors = torch.stack([self.vectors[label] for label in labels.tolist()])
                after = self._prober.probabilities([rows[i] for i in at], vectors)
                out[at] = (after.gather(1, labels[:, None])[:, 0] - top[at]).numpy()
        return out.astype(np.float32)

    def cut(self, data: Data) -> NDArray[np.bool_]:
        """See :meth:`Detector.cut`; the word takes the place of a token."""
        return token_counts(self._prober.tokenizer, data.texts) > self._prober.max_length - 1

    def state(self) -> dict[str, Any]:
        """Return settings, the protected classes and what the fit reported."""
        return {
            "config": self.config.to_dict(),
            "classes": list(self.vectors),
            "max_length": self._prober.max_length,
            "batch_size": self._prober.batch_size,
            "fit": self._fit,
        }

    def report(self) -> dict[str, Any]:
        """Return by class the clean rows it was trained on and their mean drop of probability."""
        return self._fit

    def save(self, folder: Path) -> None:
        """Write the vectors [classes, D], in the order of ``classes``."""
        from safetensors.torch import save_file

        save_file({"vectors": torch.stack(list(self.vectors.values()))}, str(folder / _FILE))

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """Return the detector saved in ``folder``.

        Raises
        ------
        CheckpointError
            The vectors are missing or broken, or are not this model's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            read_header(inside(folder, _FILE))  # bounds what the library is shown
            vectors = load_file(str(folder / _FILE))["vectors"]
            rows = dict(zip(state["classes"], vectors, strict=True))
            if not rows or any(type(c) is not int or not 0 <= c < model.config.num_labels for c in rows):
                raise ValueError("a class that the model has not")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{folder / _FILE} is missing or broken ({error!r}); fit the guard again"
            ) from error
        made = cls(
            model,
            tokenizer,
            vectors=rows,
            config=RapConfig.from_dict(state["config"]),
            max_length=state["max_length"],
            batch_size=state["batch_size"],
        )
        made._fit = state["fit"]
        wanted = tuple(made._prober.start().shape)
        if tuple(vectors.shape[1:]) != wanted:
            raise CheckpointError(
                f"{folder / _FILE} holds vectors of shape {tuple(vectors.shape[1:])}, the model's word vectors have "
                f"{wanted}: this guard was fitted on another model"
            )
        return made


def _words(
    prober: Prober, clean: Data, config: RapConfig, seed: int, progress: Progress
) -> dict[int, Trained]:
    """Train a word for each protected class on its rows."""
    assert clean.labels is not None and clean.n_classes is not None
    classes = range(clean.n_classes) if config.target_label is None else (config.target_label,)
    encoded = prober.encode(clean.texts)
    taken_for = prober.probabilities(encoded).argmax(dim=1).numpy()
    words: dict[int, Trained] = {}
    for label in classes:
        own = np.flatnonzero((clean.labels == label) & (taken_for == label))
        if len(own) == 0:
            raise MissingReference(
                f"{clean.source}: no clean row of class {label} that the model takes for it; RAP needs some, or set "
                "target_label to a class that has"
            )
        done = len(words) * config.steps
        word = train_word(
            prober,
            [encoded[at] for at in own],
            label,
            drop_low=config.drop_low,
            drop_high=config.drop_high,
            low_scale=config.low_scale,
            steps=config.steps,
            step_size=config.step_size,
            step_rows=config.step_rows,
            seed=seed,
            stepped=partial(_tell, progress, done, len(classes) * config.steps),
        )
        if word.drop < config.drop_low / 2:
            raise DefenseInert(
                f"RAP's word lowers the probability of class {label} by {word.drop:.3f} on average over its {word.rows} "
                f"clean rows, and {config.drop_low} was wanted: too little to tell anything. Raise steps or step_size, "
                "or use another detector"
            )
        words[label] = word
    return words


def _tell(progress: Progress, done: int, of: int, steps: int) -> None:
    progress("rap", done + steps, of)
