"""A guard: a detector, a threshold for a wanted false-positive rate, and the model they were fitted on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from asepsis.core.conformal import Threshold, calibrate, measured, needed_rows
from asepsis.core.fingerprint import weights_fingerprint
from asepsis.data import Data, read
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, DataError, MissingReference, ModelError
from asepsis.inference.detectors import available, load
from asepsis.inference.detectors.base import Detector
from asepsis.inference.files import load_guard, save_guard
from asepsis.inference.pipeline import GuardedPipeline, Policy
from asepsis.inference.report import Checked
from asepsis.training.checkpoint import versions
from asepsis.training.driver import Progress, silent
from asepsis.training.models import load_task

#: What a guard is fitted with beside its detector, so that the detector can be seen to earn its keep.
CONTROL = "confidence"


@dataclass(frozen=True)
class Finding:
    """What a guard says of one text.

    Attributes
    ----------
    flagged : bool
    suspicion : float
        Higher is worse.
    threshold : float
        Flagged is what lies strictly above.
    """

    flagged: bool
    suspicion: float
    threshold: float


class Guard:
    """Stands in front of a model that may be poisoned, and flags inputs that look triggered.

    Made by :meth:`fit` or :meth:`load`. Calls from several threads are taken one after the other; the model itself stays
    as it is and may be used meanwhile.

    Attributes
    ----------
    detector : Detector
    threshold : Threshold
        With the share of clean inputs it is expected to flag, and that share's interval.
    control : Threshold or None
        Threshold of the model's own confidence for the same rate; None where that is the detector.
    manifest : dict
        Model, data, settings, versions and the detector's report, JSON-ready.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: Threshold,
        manifest: dict[str, Any],
        *,
        control: tuple[Detector, Threshold] | None = None,
    ) -> None:
        self.detector = detector
        self.threshold = threshold
        self.manifest = manifest
        self._control = control
        self._lock = threading.RLock()

    @property
    def control(self) -> Threshold | None:
        """Threshold of the model's own confidence, calibrated on the same rows."""
        return None if self._control is None else self._control[1]

    @classmethod
    def fit(
        cls,
        model: Any,
        clean: Any,
        *,
        detector: str | DefenseConfig = "psim",
        target_fpr: float = 0.01,
        confidence: float | None = None,
        processing_class: Any = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Guard:
        """Fit a detector on clean rows, and calibrate its threshold on others of them.

        Parameters
        ----------
        model : str, Path or Module
            The model to guard: a folder, a hub id, a packaged name, or a model (then give ``processing_class``).
        clean : as data
            Trusted rows of the task, drawn like the inputs to come. About half of them calibrate.
        detector : str or config
            A detector's name, or its config object.
        target_fpr : float
            Wanted share of clean inputs flagged.
        confidence : float, optional
            Hold the rate with this probability for this very threshold, not only on average, see
            :func:`asepsis.core.conformal.calibrate`.
        processing_class
            The tokenizer, where ``model`` is a module.
        seed, max_length, batch_size
            Of everything drawn; tokens kept of each input; inputs per batch.
        progress : callable
            Called with ``(phase, done, of)``.

        Raises
        ------
        MissingReference
            The clean rows are too few for the wanted rate; the message says how many are needed.
        DefenseInert
            The detector could not be fitted, see its description.
        """
        kind, config = _chosen(detector)
        needed = needed_rows(target_fpr, confidence=confidence) + kind.least_rows
        rows = read(clean)
        if len(rows) < needed:
            learned = f", {kind.least_rows} of them to learn from" if kind.least_rows else ""
            raise MissingReference(
                f"a guard that flags {target_fpr:g} of clean inputs needs at least {needed} clean rows{learned}; got "
                f"{len(rows)}: give more rows or a larger rate"
            )
        network, tokenizer, rows = _prepared(model, processing_class, rows)
        learn, held = _parts(rows, kind.least_rows, needed - kind.least_rows, seed=seed)
        with _lent(network):
            options = {"max_length": max_length, "batch_size": batch_size, "progress": progress}
            fitted = kind.fit(network, tokenizer, learn, config=config, seed=seed, **options)
            threshold = _threshold(fitted, held, target_fpr, confidence)
            control = None
            if fitted.name != CONTROL:
                plain = load(CONTROL).fit(network, tokenizer, learn, seed=seed, **options)
                control = (plain, calibrate(plain.scores(held), target_fpr, confidence=confidence))
        manifest = {
            "format": 1,
            "detector": fitted.name,
            "model": str(model) if isinstance(model, (str, Path)) else getattr(network, "name_or_path", ""),
            "weights": weights_fingerprint(network),
            "task": rows.task,
            "n_classes": rows.n_classes,
            "data": {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint}
            | {"learned": len(learn) if kind.least_rows else 0, "calibrated": len(held)},
            "seed": seed,
            "report": fitted.report(),
            "versions": versions(),
        }
        return cls(fitted, threshold, manifest, control=control)

    @overload
    def __call__(self, texts: str) -> Finding: ...
    @overload
    def __call__(self, texts: Sequence[str]) -> list[Finding]: ...
    def __call__(self, texts: str | Sequence[str]) -> Finding | list[Finding]:
        """Judge one text, or several in batches."""
        several = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [t for t in several if not isinstance(t, str)]:
            raise DataError(f"a guard judges texts, got {type(wrong[0]).__name__}")
        if not several:
            return []
        scores = self._scored(self.detector, self._rows(several))
        pairs = zip(scores.tolist(), self.threshold.flags(scores).tolist(), strict=True)
        found = [Finding(flagged, score, self.threshold.value) for score, flagged in pairs]
        return found[0] if isinstance(texts, str) else found

    def check(self, data: Any, *, control: bool = False) -> Checked:
        """Judge every row of a file or data set; labels and responses are not read.

        ``control`` says what the model's own confidence flags, too.
        """
        rows = data if isinstance(data, Data) else read(data, task=self.manifest["task"])
        scores = self._scored(self.detector, rows)
        beside = None
        if control and self._control is not None:
            beside = self._scored(self._control[0], rows)
        return Checked(rows, scores, self.threshold, self.detector.name, beside, self.control, self.manifest)

    def wrap(self, pipeline: Any, *, policy: Policy = "flag", to: Any = None) -> GuardedPipeline:
        """Put the guard before a ``transformers`` pipeline, or anything that takes a list of texts.

        Parameters
        ----------
        pipeline : callable
            Answers texts.
        policy : {"flag", "abstain", "route"}
            Flagged inputs are answered and marked; not answered; or answered by ``to``.
        to : callable, optional
            The other pipeline, for ``"route"``.
        """
        return GuardedPipeline(self, pipeline, policy=policy, to=to)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the guard: ``guard.json`` and the detector's files; return the folder, which appears whole or not at all."""
        return save_guard(
            Path(folder), self.detector, self.threshold, self.manifest, control=self._control
        )

    @classmethod
    def load(cls, folder: str | Path, model: Any = None, *, processing_class: Any = None) -> Guard:
        """Return a saved guard.

        Parameters
        ----------
        model : Module, str or Path, optional
            The model it was fitted on; by default it is loaded from where it was then.

        Raises
        ------
        CheckpointError
            The folder is no whole guard, or the model is another one.
        """
        path = Path(folder)
        saved = load_guard(path)
        manifest = saved["manifest"]
        if model is None and not manifest["model"]:
            raise ModelError(f"{folder} does not say where its model is; give model=...")
        source = manifest["model"] if model is None else model
        network, tokenizer, _ = _prepared(source, processing_class, None, manifest=manifest)
        saved["check"](weights_fingerprint(network))
        with _lent(network):
            detector = load(manifest["detector"]).load(path / "detector", saved["state"], network, tokenizer)
            control = None
            if saved["control"] is not None:
                plain = load(CONTROL).load(path, saved["control"]["state"], network, tokenizer)
                control = (plain, Threshold(**saved["control"]["threshold"]))
        return cls(detector, Threshold(**saved["threshold"]), manifest, control=control)

    def _scored(self, detector: Detector, rows: Data) -> NDArray[np.float32]:
        with self._lock:
            scores = np.asarray(detector.scores(rows), np.float32)
        if scores.shape != (len(rows),) or not np.isfinite(scores).all():
            raise DataError(f"{detector.name} could not score every row of {rows.source}")
        return scores

    def _rows(self, texts: list[str]) -> Data:
        if self.manifest["task"] == "classification":
            labels = np.zeros(len(texts), np.int64)
            return Data(
                task="classification", texts=texts, labels=labels, n_classes=self.manifest["n_classes"]
            )
        return Data(task="causal", texts=texts, responses=[""] * len(texts))


class _lent:
    """A model in evaluation mode for a while, as detectors are lent it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = {module: module.training for module in self.model.modules()}
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes.items():
            module.training = training


def _chosen(detector: str | DefenseConfig) -> tuple[type[Detector], Any]:
    if isinstance(detector, str):
        kind: type[Detector] = load(detector)
        return kind, kind.config_type()
    for name in available():
        kind = load(name)
        if kind.config_type is type(detector):
            return kind, detector
    raise ConfigError(f"{type(detector).__name__} belongs to no detector; there are {', '.join(available())}")


def _prepared(
    model: Any, processing_class: Any, rows: Data | None, *, manifest: dict[str, Any] | None = None
) -> tuple[Any, Any, Any]:
    """Return model, a tokenizer of the guard's own, and the rows with as many classes as the model has."""
    task = rows.task if rows is not None else (manifest or {})["task"]
    if isinstance(model, torch.nn.Module):
        if processing_class is None:
            raise ModelError("a model given as a module needs its tokenizer: processing_class=...")
        network, tokenizer = model, processing_class
        if tokenizer.pad_token_id is None:
            raise ModelError("the tokenizer has no pad token; set one, for example tokenizer.pad_token = eos_token")
    else:
        network, tokenizer = load_task(model, task)
    if rows is not None and rows.labels is not None:
        config: Any = network.config
        n = int(config.num_labels)
        if (rows.n_classes or 0) > n:
            raise ModelError(f"the model has {n} classes, the clean rows have {rows.n_classes}")
        rows = Data(
            task=rows.task,
            texts=rows.texts,
            labels=rows.labels,
            sample_ids=rows.sample_ids,
            n_classes=n,
            source=rows.source,
        )
    # a fast tokenizer cannot be used from two threads at once: the pipeline keeps its own
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"
    return network, own, rows


def _parts(rows: Data, least: int, held: int, *, seed: int) -> tuple[Data, Data]:
    """Return rows to learn from and rows to calibrate on: half and half, or as many as calibrating needs."""
    if not least:
        return rows, rows
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = max(held, len(rows) // 2)
    cut = min(cut, len(rows) - least)
    return rows.select(np.sort(order[cut:])), rows.select(np.sort(order[:cut]))


def _threshold(
    detector: Detector, held: Data, target_fpr: float, confidence: float | None
) -> Threshold:
    scores, own = detector.scores(held), detector.own_threshold()
    if own is not None:
        return measured(own, scores)
    return calibrate(scores, target_fpr, confidence=confidence)
