"""What happens before and around the fit of a guard: names resolved, the model lent, rows divided."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asepsis.core.conformal import Threshold, calibrate, measured
from asepsis.data import Data, Task
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, ModelError
from asepsis.inference.detectors import available, load
from asepsis.inference.detectors.base import Detector
from asepsis.training.loading import folder_of
from asepsis.training.models import load_task

log = logging.getLogger("asepsis")


@contextlib.contextmanager
def lent(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode for a while, as detectors are lent it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def chosen(detector: str | DefenseConfig) -> tuple[type[Detector], Any]:
    """Return the class and the config that a name or a config stands for."""
    if isinstance(detector, str):
        kind: type[Detector] = load(detector)
        return kind, kind.config_type()
    for name in available():
        kind = load(name)
        if kind.config_type is type(detector):
            return kind, detector
    raise ConfigError(f"{type(detector).__name__} belongs to no detector; there are {', '.join(available())}")


def prepared(
    model: Any,
    processing_class: Any,
    rows: Data | None,
    *,
    manifest: dict[str, Any] | None = None,
    from_file: bool = False,
) -> tuple[Any, Any, Any]:
    """Return model, a tokenizer of the guard's own, and the rows with as many classes as the model has."""
    task = rows.task if rows is not None else (manifest or {})["task"]
    if isinstance(model, torch.nn.Module):
        if processing_class is None:
            raise ModelError("a model given as a module needs its tokenizer: processing_class=...")
        network, tokenizer = model, processing_class
        if tokenizer.pad_token_id is None:
            raise ModelError(
                "the tokenizer has no pad token; set one, for example tokenizer.pad_token = eos_token"
            )
    else:
        network, tokenizer = load_task(model, task, from_file=from_file)
    if rows is not None and rows.labels is not None:
        config: Any = network.config
        n = int(config.num_labels)
        if (rows.n_classes or 0) > n:
            raise ModelError(f"the model has {n} classes, the clean rows have {rows.n_classes}")
        rows = replace(rows, n_classes=n)
    # a fast tokenizer cannot be used from two threads at once: the pipeline keeps its own
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"
    return network, own, rows


def named(model: str | Path) -> str:
    """Return what a guard calls its model: a folder by its whole path, to be found from elsewhere; other names as they are."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else str(model)


def there(name: str) -> bool:
    """Whether a model of that name is here: packaged, in its folder or in the hub's cache."""
    if name.startswith("demo:"):
        return True
    try:
        folder_of(name, from_file=True)
    except ModelError:
        return False
    return True


def parts(rows: Data, least: int, held: int, *, seed: int) -> tuple[Data, Data]:
    """Return rows to learn from and rows to calibrate on: half and half, or as many as calibrating needs."""
    if not least:
        return rows, rows
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = max(held, len(rows) // 2)
    cut = min(cut, len(rows) - least)
    return rows.select(np.sort(order[cut:])), rows.select(np.sort(order[:cut]))


def tell_cut(cut: int, of: int, task: Task, what: str) -> bool:
    """Warn of texts that a guard reads in part, and return whether there were any: a trigger in the rest goes unseen."""
    if cut:
        log.warning(
            "guard: %d of %d %s (%.1f %%) are longer than what the guard reads, and their %s is unseen, a trigger there "
            "included; fit with a larger max_length (--max-length)",
            cut,
            of,
            what,
            100 * cut / of,
            "beginning" if task == "causal" else "end",
        )
    return cut > 0


def threshold_for(
    detector: Detector, scores: NDArray[np.float32], target_fpr: float, confidence: float | None
) -> Threshold:
    """Return a detector's own threshold with the rate it has on clean scores, or one calibrated for the wanted rate."""
    own = detector.own_threshold()
    if own is not None:
        return measured(own, scores)
    return calibrate(scores, target_fpr, confidence=confidence)
