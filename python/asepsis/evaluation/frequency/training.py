"""Watch an ordinary training: the probe rows, and the look after every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError, ModelError
from asepsis.evaluation.frequency.filter import Kernel
from asepsis.evaluation.frequency.probe import FrequencyProbe, class_labels
from asepsis.evaluation.key import PoisonKey
from asepsis.training import Settings, run_script
from asepsis.training.driver import Progress, derive_seed, silent
from asepsis.training.loop import resolve_device
from asepsis.training.models import load_for
from asepsis.training.undefended import undefended


def frequency_of_training(
    model: str | Path | nn.Module,
    data: Data,
    key: PoisonKey,
    *,
    processing_class: Any = None,
    settings: Settings | None = None,
    every: int = 5,
    probe_rows: int = 400,
    sigmas: Sequence[float] | None = None,
    kernel: Kernel = "laplace",
    progress: Progress = silent,
) -> FrequencyProbe:
    """Train without a defense and watch which part of the labels is learned first.

    All rows are trained on; the probe looks at some of them before the first step, after every ``every`` steps and
    after the last. It costs one forward over ``probe_rows`` rows a look, and changes nothing in the training.

    Parameters
    ----------
    model : str, Path or Module
        As :func:`asepsis.defend` takes it; a module needs its tokenizer as ``processing_class``.
    data : Data
        Poisoned training rows with labels.
    key : PoisonKey
        Which of them are poisoned.
    settings : Settings, optional
        Of the plain loop.
    every : int
        Optimizer steps between looks.
    probe_rows : int
        Rows looked at, see :func:`balanced_rows`.
    sigmas, kernel
        See :class:`FrequencyProbe`.
    progress : callable, optional
        Called with ``(phase, done, of)``, after the probe.

    Raises
    ------
    ConfigError
        ``every``, ``probe_rows``, a width or the kernel is wrong.
    DataError
        The rows have responses instead of labels, or one kind of row is missing.
    """
    if every < 1:
        raise ConfigError(f"every must be at least 1, got {every!r}")
    chosen = settings or Settings()
    class_labels(data)
    poisoned = key.for_ids(data.sample_ids)
    at = balanced_rows(poisoned, probe_rows, seed=chosen.seed)
    if isinstance(model, nn.Module):
        if processing_class is None:
            raise ModelError("a model given as a module needs its tokenizer: processing_class=...")
        network, tokenizer = model, processing_class
    else:
        network, tokenizer = load_for(data, model, seed=chosen.seed)
    network.to(resolve_device(chosen.device))
    probe = FrequencyProbe(
        network,
        tokenizer,
        data.select(at),
        poisoned[at],
        max_length=chosen.max_length,
        sigmas=sigmas,
        kernel=kernel,
        batch_size=chosen.eval_batch_size,
        precision=chosen.precision,
    )
    probe.observe(0)

    def watch(name: str, done: int, of: int) -> None:
        if done % every == 0 or done == of:
            probe.observe(done)
        progress(name, done, of)

    run_script(
        network,
        data,
        lambda _, rows: undefended(len(rows)),
        defense={"name": "none", "config": {}},
        processing_class=tokenizer,
        settings=chosen,
        progress=watch,
    )
    return probe


def balanced_rows(poisoned: NDArray[np.bool_], rows: int, *, seed: int) -> NDArray[np.int64]:
    """Return positions of as many poisoned as clean rows, ``rows`` together or fewer where one kind is rarer.

    Raises
    ------
    ConfigError
        ``rows`` is below 4.
    DataError
        One kind of row is missing.
    """
    if rows < 4:
        raise ConfigError(f"probe_rows must be at least 4, two of each kind, got {rows!r}")
    kinds = np.flatnonzero(~poisoned), np.flatnonzero(poisoned)
    half = min(rows // 2, *map(len, kinds))
    if half == 0:
        raise DataError(
            f"the probe compares clean with poisoned rows and needs both; {len(kinds[1])} of {len(poisoned)} rows "
            "are poisoned"
        )
    rng = np.random.default_rng(derive_seed(seed, half))
    return np.sort(np.concatenate([rng.choice(kind, half, replace=False) for kind in kinds]))
