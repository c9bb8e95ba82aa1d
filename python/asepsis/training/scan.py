"""Scan a data set: which rows look poisoned? A model is trained on them for a short while and thrown away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.core.conformal import calibrate, exceeds
from asepsis.core.phases import Ids, Script
from asepsis.data import Data, read
from asepsis.errors import ConfigError, DataError, DefenseInert
from asepsis.training import Choice, Settings, build, describe, run_script
from asepsis.training.driver import Progress, silent

Verdict = Literal["findings", "none", "inconclusive"]


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes
    ----------
    data : Data
        The rows scanned.
    suspicion : ndarray float32 [N]
        Per row, higher is worse.
    flagged : ndarray of bool [N]
        Rows above the threshold.
    threshold : float or None
        From clean rows at the wanted rate, else where the group parts from its class; None where nothing parts.
    verdict : {"findings", "none", "inconclusive"}
        ``"none"`` says that no row stood out by this method, not that no row is poisoned.
    method : str
    manifest : dict
        Settings, versions and the method's diagnostics.
    evidence : dict
        Arrays of the scanned rows that a report draws, see :mod:`asepsis.core.evidence`.
    """

    data: Data
    suspicion: NDArray[np.float32]
    flagged: NDArray[np.bool_]
    threshold: float | None
    verdict: Verdict
    method: str
    manifest: dict[str, Any]
    evidence: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def split(self) -> tuple[Data | None, Data | None]:
        """Return the rows not flagged and the rows flagged, order kept; None for an empty part."""
        parts = (np.flatnonzero(~self.flagged), np.flatnonzero(self.flagged))
        rest, flagged = (self.data.select(at) if len(at) else None for at in parts)
        return rest, flagged

    def to_dict(self, metrics: dict[str, float | None] | None = None) -> dict[str, Any]:
        """Return the JSON of ``asepsis scan data --json``; ``metrics`` come from an answer key, if there is one."""
        rows = zip(self.data.sample_ids.tolist(), self.suspicion.tolist(), self.flagged.tolist(), strict=True)
        return {
            "method": self.method,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "n": len(self.data),
            "flagged": int(self.flagged.sum()),
            "rows": [
                {"row": row, "sample_id": i, "suspicion": s, "flagged": f}
                for row, (i, s, f) in enumerate(rows)
            ],
            "metrics": metrics,
            "manifest": self.manifest,
        }


def scan_data(
    data: Any,
    *,
    method: Choice = "abl",
    model: Any,
    clean: Any = None,
    target_fpr: float | None = None,
    processing_class: Any = None,
    settings: Settings | None = None,
    peft_config: Any = None,
    progress: Progress = silent,
) -> Scan:
    """Score every row for being poisoned, and flag those above a threshold.

    Memory beside the model is that of :func:`asepsis.data.read`, and at most 1,000 bytes a row: ids, labels, losses of each
    snapshot, plans of batches.

    Parameters
    ----------
    data : Data, path, datasets.Dataset or list of dict
        The untrusted rows.
    method : str or config
        A defense that can scan.
    model : str, Path or Module
        What is trained to tell; it is not returned.
    clean : as data, optional
        Trusted rows, scored along, that set the threshold.
    target_fpr : float, optional
        Wanted share of clean rows flagged; needs ``clean`` and is 0.01 where only ``clean`` is given.
    processing_class, settings, peft_config, progress
        As for :func:`asepsis.defend`.

    Raises
    ------
    MissingReference
        If the clean rows are too few for the wanted rate.
    DefenseInert
        If the method could not act.
    """
    rows = read(data)
    if target_fpr is not None and clean is None:
        raise ConfigError("target_fpr needs clean rows to calibrate on: pass clean=...")
    rate = 0.01 if target_fpr is None else target_fpr
    trusted = None if clean is None else read(clean, task=rows.task, n_classes=rows.n_classes)
    scanner = build(method)
    if trusted is not None:
        left = len(trusted) - scanner.rows_learned(len(trusted))
        calibrate(np.zeros(left, np.float32), rate)  # refuse before training, not after
    both, trusted_ids = (rows, np.empty(0, np.int64)) if trusted is None else _joined(rows, trusted)
    method_script: Callable[..., Script] = scanner.scan
    run = run_script(
        model,
        both,
        lambda network, joined: method_script(network, joined, trusted_ids),
        defense=describe(method),
        processing_class=processing_class,
        settings=settings,
        peft_config=peft_config,
        progress=progress,
    )
    if run.outcome.suspicion is None:
        raise DefenseInert(f"{method} returned no suspicion")
    n = len(rows)
    suspicion = run.outcome.suspicion[:n]
    if trusted is not None:
        scores = run.outcome.suspicion[n:]
        cut = calibrate(scores[~np.isnan(scores)] if scanner.rows_learned(len(scores)) else scores, rate)
        threshold: float | None = cut.value
        flagged = suspicion > cut.value
        verdict: Verdict = "findings" if exceeds(int(flagged.sum()), n, cut) else "none"
    else:
        flagged = np.isin(rows.sample_ids, run.outcome.flagged)
        threshold = float(suspicion[flagged].min()) if flagged.any() else None
        doubtful = run.outcome.report.get("verdict") == "doubtful"
        verdict = "findings" if flagged.any() else "inconclusive" if doubtful else "none"
    evidence = dict(run.outcome.evidence)
    if "loss.values" in evidence:
        evidence["loss.values"] = evidence["loss.values"][:, :n]
    name = describe(method)["name"]
    return Scan(rows, suspicion, flagged, threshold, verdict, name, run.manifest, evidence)


def _joined(rows: Data, trusted: Data) -> tuple[Data, Ids]:
    """Return untrusted and trusted rows as one data set, and the ids of the trusted part."""
    if trusted.task != rows.task:
        raise DataError(f"the clean rows are for {trusted.task}, the data is for {rows.task}")
    first = int(rows.sample_ids.max()) + 1
    ids = np.arange(first, first + len(trusted))
    labels = None if rows.labels is None or trusted.labels is None else np.r_[rows.labels, trusted.labels]
    responses = None
    if rows.responses is not None and trusted.responses is not None:
        responses = [*rows.responses, *trusted.responses]
    both = replace(
        rows,
        texts=[*rows.texts, *trusted.texts],
        labels=labels,
        responses=responses,
        sample_ids=np.r_[rows.sample_ids, ids],
    )
    return both, ids
