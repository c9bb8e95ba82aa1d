"""What a run is described by: in its manifest, and to whoever resumes it."""

from __future__ import annotations

from typing import Any

from torch import nn

from asepsis.core.fingerprint import weights_fingerprint
from asepsis.core.manifest import FORMAT
from asepsis.core.outcome import Outcome
from asepsis.data import Data
from asepsis.defenses.base import Given
from asepsis.training.checkpoint import versions
from asepsis.training.driver import Driver
from asepsis.training.settings import Settings


def manifest_of(
    driver: Driver,
    outcome: Outcome,
    defense: dict[str, Any],
    settled: dict[str, Any],
    *,
    name: str,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a finished run is described by."""
    rows = driver.data
    return {
        "format": FORMAT,
        "model": name,
        "origin": origin,
        "task": rows.task,
        "n_classes": rows.n_classes,
        "defense": defense,
        "acted": vars(outcome.acted),
        "report": outcome.report,
        "data": {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint},
        "settings": settled,
        "steps": driver.steps_done,
        "versions": versions(),
    }


def made_of(
    rows: Data,
    network: nn.Module,
    defense: dict[str, Any],
    given: Given | None,
    settled: dict[str, Any],
    *,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what decides a run's result: whoever resumes it has to have the same."""
    reference = None if given is None else given.clean_reference
    return {
        "data": rows.fingerprint,
        "clean_reference": reference.fingerprint if isinstance(reference, Data) else reference,
        "model": {"weights": weights_fingerprint(network), "origin": origin},
        "defense": defense,
        "settings": settled,
    }


def settings_of(chosen: Any) -> dict[str, Any]:
    """Return what :class:`Settings` or TrainingArguments say of a result."""
    if isinstance(chosen, Settings):
        return dict(vars(chosen))
    return {"seed": chosen.seed, "trainer": _chosen(chosen)}


def _chosen(args: Any) -> dict[str, Any]:
    """Return the training arguments that decide a result."""
    names = [
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "num_train_epochs",
        "max_steps",
        "lr_scheduler_type",
        "warmup_steps",
        "bf16",
        "fp16",
        "optim",
        "world_size",
    ]
    return {name: str(getattr(args, name)) for name in names if hasattr(args, name)}
