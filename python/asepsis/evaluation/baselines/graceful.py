"""GraCeFul: gradients of poisoned rows stand apart at low frequencies; of two clusters of rows the smaller is thrown out.

Paper: "Gracefully Filtering Backdoor Samples for Generative Large Language Models without Retraining" (Wu, Cheng, Fang, Zhang,
Liu, COLING 2025, arXiv 2412.02454).

Certain: for each row the gradient of its loss by the output layer (``lm_head``) of the model as it comes, before any training; its
two-dimensional discrete cosine transform, of which the low frequencies are kept; hierarchical clustering of the rows; the smaller
cluster is thrown out and the model is trained on the rest.

How it is done here
-------------------
A row's gradient is ``G = E^T S``: the errors at its response tokens ``E [T, V]`` and the states that the output layer reads
``S [T, H]``. The corner of its transform is ``(E C_V^T)^T (S C_H^T)`` with the first rows of two cosine matrices, so neither a
gradient nor a vocabulary-sized transform is ever in memory. A test holds it to the transform of the whole gradient.

Deviations
----------
* *How much is kept* is a corner of fixed size, here 64 x 64, whatever the vocabulary.
* *Every row's corner is scaled to length one*, so that a row is judged by the direction of its gradient: lengths follow the loss and
  the number of tokens.
* *Principal components, then Ward's linkage*: the paper's own numbers were not at hand.
* *The gradient of the output layer alone*, where a model shares its matrix with the word embeddings too.
* *A suspicion*, which the paper does not have: how much nearer a row is to the smaller cluster's center than to the larger's.

When not to trust it
--------------------
Without poison it throws the smaller cluster out all the same: see the row of the clean control. Where rows come from two sources
or in two languages, those are the clusters. Poison that answers in as many ways as clean rows do has no cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asepsis.core.placement import head_of
from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.baselines._found import Found
from asepsis.evaluation.baselines._packages import package
from asepsis.training.collate import IGNORED, Collator
from asepsis.training.models import room


@dataclass(frozen=True, kw_only=True)
class GracefulConfig(DefenseConfig):
    """Settings of GraCeFul.

    Attributes
    ----------
    corner : int
        Frequencies kept along the vocabulary and along the hidden state.
    dimensions : int
        Principal components that are clustered.
    """

    corner: int = 64
    dimensions: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("corner", "dimensions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")


def by_gradients(
    model: Any,
    tokenizer: Any,
    data: Data,
    config: GracefulConfig | None = None,
    *,
    max_length: int = 256,
) -> Found:
    """Return what GraCeFul says of the rows of a causal task.

    Raises
    ------
    DataError
        The rows have labels, or there are fewer than three.
    MissingDependency
        scikit-learn is not installed.
    """
    chosen = config or GracefulConfig()
    if len(data) < 3:
        raise DataError(f"GraCeFul needs at least 3 rows to cluster, got {len(data)}")
    corners = low_frequencies(model, tokenizer, data, corner=chosen.corner, max_length=max_length)
    rows = corners.reshape(len(data), -1).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    least = min(chosen.dimensions, *rows.shape)
    points = package("sklearn.decomposition").PCA(least, svd_solver="full").fit_transform(rows)
    found = (
        package("sklearn.cluster").AgglomerativeClustering(n_clusters=2, linkage="ward").fit_predict(points)
    )
    # where both are as large, the one with the first row is kept
    smaller = 1 - found[0] if (found == found[0]).sum() * 2 == len(found) else np.bincount(found).argmin()
    flags = found == smaller
    inside, outside = points[flags].mean(axis=0), points[~flags].mean(axis=0)
    suspicion = np.linalg.norm(points - outside, axis=1) - np.linalg.norm(points - inside, axis=1)
    silhouette = float(package("sklearn.metrics").silhouette_score(points, found))
    return Found(suspicion, flags, {"thrown_out": int(flags.sum()), "silhouette": silhouette})


@torch.no_grad()
def low_frequencies(
    model: Any, tokenizer: Any, data: Data, *, corner: int, max_length: int = 256
) -> NDArray[np.float32]:
    """Return the low-frequency corner of each row's output-layer gradient, float32 [N, corner, corner].

    The gradient is that of the row's mean loss per response token, the transform is the orthonormal DCT-II in both directions. A
    side shorter than ``corner`` is kept whole.
    """
    if data.task != "causal":
        raise DataError(
            f"{data.source}: GraCeFul reads the gradients of responses, and these rows have labels"
        )
    _, head = head_of(model.get_base_model() if hasattr(model, "get_base_model") else model)
    device = next(model.parameters()).device
    collate = Collator(tokenizer, data, max_length=room(model, max_length))
    read: list[Tensor] = []
    found: list[Tensor] = []
    cosines: tuple[Tensor, Tensor] | None = None
    was_training = model.training
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model.eval()
    try:
        for row in range(len(data)):
            batch = collate([(row, False)]).to(device)
            read.clear()
            logits = model(**batch.inputs).logits[0, -batch.labels.shape[1] : -1].float()
            wanted = batch.labels[0, 1:]
            at = wanted != IGNORED
            states = read[-1][0, -batch.labels.shape[1] : -1][at].float()
            errors = logits[at].softmax(dim=-1)
            errors[torch.arange(len(errors), device=device), wanted[at]] -= 1
            if cosines is None:
                cosines = (
                    _cosines(corner, errors.shape[1], device),
                    _cosines(corner, states.shape[1], device),
                )
            found.append(((errors @ cosines[0].T).T @ (states @ cosines[1].T) / max(1, len(errors))).cpu())
    finally:
        handle.remove()
        model.train(was_training)
    return np.asarray(torch.stack(found).numpy())


def _cosines(kept: int, n: int, device: torch.device) -> Tensor:
    """Return the first rows of the orthonormal DCT-II matrix of size n, [min(kept, n), n]."""
    rows = torch.arange(min(kept, n), dtype=torch.float64)[:, None]
    matrix = torch.cos(math.pi / n * (torch.arange(n, dtype=torch.float64) + 0.5) * rows) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, torch.float32)
