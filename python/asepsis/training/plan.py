"""Which rows each micro-batch holds: a function of the request, the data and a seed, the same for every driver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asepsis.core.phases import Train
from asepsis.data import Data
from asepsis.errors import ConfigError

Rows = list[tuple[int, bool]]  # (position, isolated)

# Batches are cut from windows of this many batches sorted by length: little padding, near-random order.
_WINDOW = 16


@dataclass(frozen=True)
class Plan:
    """The micro-batches of one training. Iterating starts from the beginning each time and needs O(N) memory.

    Attributes
    ----------
    steps, accumulation : int
        Optimizer steps, and micro-batches per step over all ranks; ``len(plan)`` is their product.
    rows, isolated : ndarray of int64
        Positions of ordinary and of isolated rows.
    lengths : ndarray of int64 [N]
        Characters per row, to batch rows of like length.
    batch_size : int
        Rows per micro-batch; half of them isolated where there are isolated rows.
    seed : int
        Of this request.
    """

    steps: int
    accumulation: int
    rows: NDArray[np.int64]
    isolated: NDArray[np.int64]
    lengths: NDArray[np.int64]
    batch_size: int
    seed: int

    def __len__(self) -> int:
        return self.steps * self.accumulation

    @property
    def epochs(self) -> float:
        """Passes over the ordinary rows."""
        ordinary = self.batch_size - (self.batch_size // 2 if len(self.isolated) else 0)
        return len(self) / math.ceil(len(self.rows) / ordinary)

    def __iter__(self) -> Iterator[Rows]:
        rng = np.random.default_rng(self.seed)
        share = self.batch_size // 2 if len(self.isolated) else 0
        ordinary = self._forever(self.rows, self.batch_size - share, rng)
        apart = self._forever(self.isolated, share, rng) if share else itertools.repeat(self.isolated)
        for batch, others in itertools.islice(zip(ordinary, apart, strict=False), len(self)):
            yield [(int(p), False) for p in batch] + [(int(p), True) for p in others]

    def _forever(
        self, rows: NDArray[np.int64], size: int, rng: np.random.Generator
    ) -> Iterator[NDArray[np.int64]]:
        # Ordinary and isolated rows share batches: sorting would pair short ones with long ones, and a few steps of
        # contrast would learn the difference in length.
        width = size * (1 if len(self.isolated) else _WINDOW)
        while True:
            shuffled = rng.permutation(rows)
            for start in range(0, len(shuffled), width):
                window = shuffled[start : start + width]
                window = window[np.argsort(self.lengths[window], kind="stable")]
                batches = [window[i : i + size] for i in range(0, len(window), size)]
                for index in rng.permutation(len(batches)):
                    yield batches[index]


def make_plan(
    request: Train, data: Data, *, epochs: float, batch_size: int, accumulation: int, seed: int
) -> Plan:
    """Lay out a training. An epoch is one pass over the ordinary rows, rounded up to whole steps.

    Parameters
    ----------
    epochs : float
        Used when the request names neither epochs nor steps.
    accumulation : int
        Micro-batches per optimizer step, ranks counted.
    seed : int
        Of this request; the driver derives it from the run's seed and the request's number.
    """
    rows = np.arange(len(data)) if request.rows is None else data.positions(request.rows)
    isolated = np.empty(0, np.int64) if request.isolated is None else data.positions(request.isolated)
    if len(np.intersect1d(rows, isolated)):
        raise ConfigError(f"{request.name}: some rows are both ordinary and isolated")
    if len(isolated) and batch_size < 2:
        raise ConfigError("unlearning mixes isolated and ordinary rows: batch_size must be at least 2")
    ordinary = batch_size - batch_size // 2 if len(isolated) else batch_size
    wanted = epochs if request.epochs is None else request.epochs
    per_epoch = math.ceil(len(rows) / ordinary) / accumulation
    steps = math.ceil(wanted * per_epoch) if request.steps is None else request.steps
    if steps < 1:
        raise ConfigError(f"{request.name}: no optimizer step in {wanted} epochs of {len(rows)} rows")
    lengths = np.array([len(text) for text in data.texts])
    return Plan(steps, accumulation, rows, isolated, lengths, batch_size, seed)
