"""Overwrite rows of an embedding matrix, or some values of them; every other value keeps its bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asepsis.core.phases import Ids

ThresholdRule = Literal["frobenius_over_rows_sequential", "frobenius_over_rows_once"]


@dataclass(frozen=True)
class Purged:
    """What was overwritten: how many rows changed, how many values, and the thresholds of the first and last row."""

    rows: int
    values: int
    thresholds: tuple[float, float] | None = None


@torch.no_grad()
def purge_rows(words: Tensor, rows: Ids, values: Tensor) -> Purged:
    """Overwrite whole rows of ``words`` [V, D] in place with ``values`` [K, D], or one row [D] for all."""
    at = torch.from_numpy(rows).to(words.device)
    wanted = values.to(words.device, words.dtype).expand(len(rows), -1)
    different = words[at] != wanted
    words[at] = wanted
    return Purged(int(different.any(1).sum()), int(different.sum()))


@torch.no_grad()
def purge_dimensions(
    words: Tensor, pretrained: Tensor, rows: Ids, values: Tensor, *, rule: ThresholdRule
) -> Purged:
    """Overwrite those values of the rows that moved further than a threshold, in place, rows in the order given.

    The threshold is the Frobenius norm of ``words - pretrained`` over the number of *rows*, ``||W - P||_F / V``. That
    is no mean change: a trained value is far above it, so nearly the whole row goes.

    Parameters
    ----------
    words, pretrained : Tensor
        ``[V, D]``, now and before training.
    rows : ids
        Rows to purge.
    values : Tensor
        ``[D]``: what replaces a value.
    rule : {"frobenius_over_rows_sequential", "frobenius_over_rows_once"}
        The threshold is taken anew before each row, as the authors' code does, or once. Anew, it grows with every row
        overwritten, because that row is then far from where it began: later rows are treated more leniently.

    Returns
    -------
    Purged
        A value that did not move, or exactly as far as the threshold, is kept. (The authors' code writes 0 there.)
    """
    reference, new = pretrained.to(words.device), values.to(words.device, words.dtype)
    total = float((words.double() - reference.double()).square().sum())
    thresholds: list[float] = []
    changed_rows = changed_values = 0
    for row in rows.tolist():
        if rule == "frobenius_over_rows_sequential" or not thresholds:
            thresholds.append(total**0.5 / len(words))
        moved = (words[row].double() - reference[row].double()).abs()
        replaced = torch.where(moved > thresholds[-1], new, words[row])
        different = int((replaced != words[row]).sum())
        changed_rows, changed_values = changed_rows + (different > 0), changed_values + different
        words[row] = replaced
        total += float((replaced.double() - reference[row].double()).square().sum() - moved.square().sum())
    return Purged(changed_rows, changed_values, (thresholds[0], thresholds[-1]) if thresholds else None)
