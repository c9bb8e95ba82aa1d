"""Cross-entropy per sample: the loss ledger's input.

Contract: for row ``b``, ``total[b] = sum_t -log softmax(float32(logits[b, t]))[labels[b, t]]`` over the positions
whose label is not ``ignore_index``, and ``count[b]`` is how many these are. Both are returned, since a sum and a count
give every mean but a mean gives no sum. Labels are used as they stand: for a causal model the caller has shifted them.
The upcast comes first because bf16 logits quantize small losses into a few hundred values, full of exact ties.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asepsis.errors import DataError
from asepsis.kernels._dispatch import Backend, select

_CHUNK_ELEMENTS = 1 << 24  # 64 MiB of float32 logits at a time


def sample_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Sum of float32 cross-entropy per sample, and the number of positions in the sum. Differentiable.

    Parameters
    ----------
    logits
        ``[B, C]``, or ``[B, T, V]`` for a language model; any floating dtype.
    labels
        ``[B]`` or ``[B, T]`` integer classes, already shifted to stand at the position that predicts them.
    ignore_index
        Label of the positions that do not count.
    backend
        ``"reference"`` is the only path there is. Three-dimensional logits are upcast a slice of positions at a time,
        so without gradients no whole float32 copy exists.

    Returns
    -------
    total : Tensor
        ``[B]`` float32; 0 for a sample with no position that counts.
    count : Tensor
        ``[B]`` int64.

    Raises
    ------
    DataError
        The shapes do not go together, or the dtypes are not floating and integer.
    BackendError
        The backend that was asked for cannot run.
    """
    if logits.dim() not in (2, 3) or labels.shape != logits.shape[:-1]:
        raise DataError(
            "sample_loss takes logits [B, C] with labels [B], or logits [B, T, V] with labels [B, T]; "
            f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        )
    if not logits.is_floating_point() or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"logits must be floating and labels integer, got {logits.dtype} and {labels.dtype}")
    select("sample_loss", backend, {"reference": None})
    if logits.dim() == 2:
        logits, labels = logits.unsqueeze(1), labels.unsqueeze(1)
    return _reference(logits, labels.long(), ignore_index)


def _reference(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    n, positions, classes = logits.shape
    step = max(1, _CHUNK_ELEMENTS // max(1, n * classes))
    total = torch.zeros(n, dtype=torch.float32, device=logits.device)
    for start in range(0, positions, step):
        part = logits[:, start : start + step].float()  # [B, t, V]
        wanted = labels[:, start : start + step]  # [B, t]
        losses = F.cross_entropy(
            part.flatten(0, 1), wanted.flatten(), ignore_index=ignore_index, reduction="none"
        )
        total = total + losses.view(wanted.shape).sum(1)
    return total, (labels != ignore_index).sum(1)
