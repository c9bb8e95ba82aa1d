"""A guard: a detector, a threshold for a wanted false-positive rate, and the model they were fitted on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from asepsis.core.conformal import Threshold, calibrate, needed_rows
from asepsis.core.fingerprint import weights_fingerprint
from asepsis.core.foreign import foreign
from asepsis.data import Data, read, read_inputs
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import CheckpointError, ConfigError, DataError, MissingReference, ModelError
from asepsis.inference.detectors import load
from asepsis.inference.detectors.base import Detector
from asepsis.inference.files import FILES, check_model, load_guard, save_guard, stored_threshold
from asepsis.inference.fitting import chosen, lent, named, parts, prepared, tell_cut, there, threshold_for
from asepsis.inference.pipeline import GuardedPipeline, Policy
from asepsis.inference.report import Checked
from asepsis.training.checkpoint import versions
from asepsis.training.driver import Progress, silent
from asepsis.training.models import room

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
    cut : bool
        The text is longer than what the guard reads: nothing is said of the rest.
    """

    flagged: bool
    suspicion: float
    threshold: float
    cut: bool = False


@dataclass(frozen=True)
class Calibration:
    """Scores of the clean rows that set the threshold: the detector's, and the control's where there is one."""

    scores: NDArray[np.float32]
    control: NDArray[np.float32] | None

    def to_dict(self) -> dict[str, list[float] | None]:
        """Return them JSON-ready."""
        control = None if self.control is None else self.control.tolist()
        return {"scores": self.scores.tolist(), "control": control}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Take :meth:`to_dict` back; 32-bit floats survive JSON."""
        control = values["control"]
        return cls(
            np.asarray(values["scores"], np.float32),
            None if control is None else np.asarray(control, np.float32),
        )


class Guard:
    """Stands in front of a model that may be poisoned, and flags inputs that look triggered.

    Made by :meth:`fit` or :meth:`load`. Calls from several threads are taken one after the other; the model itself stays
    as it is and may be used meanwhile.

    Attributes
    ----------
    model : Module
        The guarded model.
    detector : Detector
    threshold : Threshold
        With the share of clean inputs it is expected to flag, and that share's interval.
    control : Threshold or None
        Threshold of the model's own confidence for the same rate; None where that is the detector.
    manifest : dict
        Model, data, settings, versions and the detector's report, JSON-ready.
    calibration : Calibration
        Scores of the rows that set the threshold.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: Threshold,
        manifest: dict[str, Any],
        *,
        model: Any,
        control: tuple[Detector, Threshold] | None = None,
        calibration: Calibration,
    ) -> None:
        self.model = model
        self.calibration = calibration
        self.detector = detector
        self.threshold = threshold
        self.manifest = manifest
        self._control = control
        self._told = False
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
            Of everything drawn; tokens kept of each input, at most the model's positions; inputs per batch. What of an input
            lies beyond is unseen, and a warning says so: give as many as the guarded pipeline reads.
        progress : callable
            Called with ``(phase, done, of)``.

        Raises
        ------
        MissingReference
            The clean rows are too few for the wanted rate; the message says how many are needed.
        DefenseInert
            The detector could not be fitted, see its description.
        """
        kind, config = chosen(detector)
        needed = needed_rows(target_fpr, confidence=confidence) + kind.least_rows
        rows = read(clean)
        if len(rows) < needed:
            learned = f", {kind.least_rows} of them to learn from" if kind.least_rows else ""
            raise MissingReference(
                f"a guard that flags {target_fpr:g} of clean inputs needs at least {needed} clean rows{learned}; got "
                f"{len(rows)}: give more rows or a larger rate"
            )
        network, tokenizer, rows = prepared(model, processing_class, rows)
        max_length = room(network, max_length)
        learn, held = parts(rows, kind.least_rows, needed - kind.least_rows, seed=seed)
        with lent(network):
            options: dict[str, Any] = {
                "max_length": max_length,
                "batch_size": batch_size,
                "progress": progress,
            }
            fitted = kind.fit(network, tokenizer, learn, config=config, seed=seed, **options)
            scores, own = np.asarray(fitted.scores(held), np.float32), None
            control = None
            if fitted.name != CONTROL:
                same = kind.control(config)
                plain = load(CONTROL).fit(network, tokenizer, learn, config=same, seed=seed, **options)
                own = plain.scores(held)
                control = (plain, calibrate(own, target_fpr, confidence=confidence))
            threshold = threshold_for(fitted, scores, target_fpr, confidence)
            tell_cut(int(fitted.cut(rows).sum()), len(rows), rows.task, "clean rows")
        manifest = {
            "format": 1,
            "detector": fitted.name,
            "model": named(model) if isinstance(model, (str, Path)) else getattr(network, "name_or_path", ""),
            "weights": weights_fingerprint(network),
            "task": rows.task,
            "n_classes": rows.n_classes,
            "data": {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint}
            | {"learned": len(learn) if kind.least_rows else 0, "calibrated": len(held)},
            "seed": seed,
            "report": fitted.report(),
            "versions": versions(),
        }
        return cls(
            fitted, threshold, manifest, model=network, control=control, calibration=Calibration(scores, own)
        )

    @overload
    def __call__(self, texts: str) -> Finding: ...  # type: ignore[overload-overlap] # a str is a sequence of str
    @overload
    def __call__(self, texts: Sequence[str]) -> list[Finding]: ...
    def __call__(self, texts: str | Sequence[str]) -> Finding | list[Finding]:
        """Judge one text, or several in batches."""
        several = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [t for t in several if not isinstance(t, str)]:
            raise DataError(f"a guard judges texts, got {type(wrong[0]).__name__}")
        if not several:
            return []
        rows = self._rows(several)
        scores, cut = self._scored(self.detector, rows), self._cut(rows)
        if not self._told:  # once: a pipeline asks for every few inputs
            self._told = tell_cut(int(cut.sum()), len(rows), rows.task, "inputs")
        judged = zip(scores.tolist(), self.threshold.flags(scores).tolist(), cut.tolist(), strict=True)
        found = [Finding(flagged, score, self.threshold.value, part) for score, flagged, part in judged]
        return found[0] if isinstance(texts, str) else found

    def check(self, data: Any, *, control: bool = False, text_column: str = "text") -> Checked:
        """Judge every row of a file or data set; labels and responses are not read and need not be there.

        ``control`` says what the model's own confidence flags, too. Rows are read by :func:`asepsis.data.read_inputs`.
        """
        rows = data
        if not isinstance(data, Data):
            task, n_classes = self.manifest["task"], self.manifest["n_classes"]
            rows = read_inputs(data, task=task, n_classes=n_classes, text_column=text_column)
        scores = self._scored(self.detector, rows)
        beside = None
        if control and self._control is not None:
            beside = self._scored(self._control[0], rows)
        cut = int(self._cut(rows).sum())
        tell_cut(cut, len(rows), self.manifest["task"], "inputs")
        return Checked(
            rows, scores, self.threshold, self.detector.name, beside, self.control, self.manifest, cut
        )

    def at(self, target_fpr: float, *, confidence: float | None = None) -> Guard:
        """Return the same guard for another rate, from the scores of the rows it was calibrated on.

        Raises
        ------
        MissingReference
            They are too few for that rate.
        ConfigError
            The threshold is the method's own (``threshold="reference"`` or ``"normalized"``) and follows no rate.
        """
        if self.threshold.target_fpr is None:
            raise ConfigError(
                f"the threshold {self.threshold.value:g} is the method's own and follows no rate; fit a guard with "
                'threshold="conformal" to choose one'
            )
        threshold = threshold_for(self.detector, self.calibration.scores, target_fpr, confidence)
        control, own = None, self.calibration.control
        if self._control is not None and own is not None:
            control = (self._control[0], calibrate(own, target_fpr, confidence=confidence))
        other = Guard(
            self.detector,
            threshold,
            self.manifest,
            model=self.model,
            control=control,
            calibration=self.calibration,
        )
        other._lock = self._lock  # one model, one detector: they are taken in turns as well
        return other

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
            Path(folder),
            self.detector,
            self.threshold,
            self.manifest,
            control=self._control,
            calibration=self.calibration.to_dict(),
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
        try:
            # who wrote the guard chose that name: nothing is fetched for it
            network, tokenizer, _ = prepared(
                source, processing_class, None, manifest=manifest, from_file=model is None
            )
        except ModelError as error:
            if model is not None or there(source):
                raise
            # nor is fetching it advised: a folder's name of one machine may be a stranger's repository on the hub
            raise ModelError(
                f"{folder} was fitted on {source}, which is not here; say where the model is: give model=... (--model)"
            ) from error
        check_model(path, manifest, weights_fingerprint(network))
        with lent(network), foreign(f"{path} is broken", CheckpointError):
            detector = load(manifest["detector"]).load(path / FILES, saved["state"], network, tokenizer)
            control = None
            if saved["control"] is not None:
                plain = load(CONTROL).load(path, saved["control"]["state"], network, tokenizer)
                control = (plain, stored_threshold(saved["control"]["threshold"]))
            threshold = stored_threshold(saved["threshold"])
            calibration = Calibration.from_dict(saved["calibration"])
        return cls(detector, threshold, manifest, model=network, control=control, calibration=calibration)

    @staticmethod
    def fits(folder: str | Path, model: Any) -> bool:
        """Whether the guard in a folder was fitted on this very model."""
        wanted: str = load_guard(Path(folder))["manifest"]["weights"]
        return wanted == weights_fingerprint(model)

    def _scored(self, detector: Detector, rows: Data) -> NDArray[np.float32]:
        with self._lock, lent(self.model):
            scores = np.asarray(detector.scores(rows), np.float32)
        if scores.shape != (len(rows),) or not np.isfinite(scores).all():
            raise DataError(f"{detector.name} could not score every row of {rows.source}")
        return scores

    def _cut(self, rows: Data) -> NDArray[np.bool_]:
        with self._lock:
            return self.detector.cut(rows)

    def _rows(self, texts: list[str]) -> Data:
        if self.manifest["task"] == "classification":
            labels = np.zeros(len(texts), np.int64)
            return Data(
                task="classification", texts=texts, labels=labels, n_classes=self.manifest["n_classes"]
            )
        return Data(task="causal", texts=texts, responses=[""] * len(texts))
