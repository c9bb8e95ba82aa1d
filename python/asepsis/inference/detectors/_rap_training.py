"""The training of RAP's word: one vector, moved until clean rows of a class lose a little of their probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asepsis.inference.detectors._rap_row import Prober


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained word.

    Attributes
    ----------
    vector : Tensor [D]
        fp32, on the CPU, as long as word vectors are.
    rows : int
        Clean rows it was trained on.
    drop : float
        Mean drop of probability over those rows.
    """

    vector: Tensor
    rows: int
    drop: float


def train_word(
    prober: Prober,
    rows: Sequence[Sequence[int]],
    label: int,
    *,
    drop_low: float,
    drop_high: float,
    low_scale: float,
    steps: int,
    step_size: float,
    step_rows: int,
    seed: int,
    stepped: Callable[[int], None],
) -> Trained:
    """Train the word's vector on the token ids of clean rows that the model takes for ``label``.

    Minimizes the mean of ``low_scale * max(0, drop_low - d) + max(0, d - drop_high)``, where ``d`` is a row's drop of
    probability, by Adam with steps of ``step_size`` times the vector's root mean square. The vector keeps its norm. To be
    called without gradients, the model in evaluation mode.

    Parameters
    ----------
    stepped : callable
        Called with the number of steps done.
    """
    vector = prober.start()
    norm = vector.norm().clamp(min=1e-8)
    vector.requires_grad_(True)
    adam = torch.optim.Adam([vector], lr=step_size * float(norm) / vector.numel() ** 0.5)
    before = prober.probabilities(rows)[:, label]
    rng = np.random.default_rng([seed, label])
    waiting = np.empty(0, np.int64)
    for step in range(steps):
        if len(waiting) == 0:
            waiting = rng.permutation(len(rows))
        at, waiting = waiting[:step_rows], waiting[step_rows:]
        with torch.enable_grad():
            after = prober.with_word([rows[i] for i in at], vector.expand(len(at), -1))[:, label]
            drop = before[at].to(after.device) - after
            loss = (low_scale * (drop_low - drop).relu() + (drop - drop_high).relu()).mean()
            # of the vector alone: nothing is stored on the model's weights
            (vector.grad,) = torch.autograd.grad(loss, [vector])
        adam.step()
        vector.mul_(norm / vector.norm().clamp(min=1e-8))
        stepped(step + 1)
    learned = vector.detach().cpu()
    after = prober.probabilities(rows, learned.expand(len(rows), -1))[:, label]
    return Trained(vector=learned, rows=len(rows), drop=float((before - after).mean()))
