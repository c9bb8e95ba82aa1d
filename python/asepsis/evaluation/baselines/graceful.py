"""GraCeFul: gradients of poisoned rows stand apart at low frequencies; of two clusters of rows the smaller is thrown out.

Paper: "Gracefully Filtering Backdoor Samples for Generative Large Language Models without Retraining" (Wu, Cheng, Fang, Zhang,
Liu, COLING 2025, arXiv 2412.02454).

Certain (the authors' code): for each row the gradient of its loss by the output layer (``lm_head``) of the model as it comes, before
any training; its two-dimensional discrete cosine transform, of which the lowest eighth in either direction is kept; 32 principal
components; agglomerative clustering into two by cosine distance and average linkage; the smaller cluster is thrown out and the model
is trained on the rest.

Assumed: a row's loss is the mean over its response tokens, the transform is orthonormal, and an eighth is rounded down.

How it is done here
-------------------
A row's gradient is ``G = E^T S``: the errors at its response tokens ``E [T, V]`` and the states that the output layer reads
``S [T, H]``. Its transform is that of ``E`` along the vocabulary, transposed, times that of ``S`` along the hidden state, so the
block is a product of what is kept of the two: no gradient is ever in memory, and no cosine matrix, which for GPT-2 would be 1.3 GB.
A test holds it to the transform of the whole gradient.

What stays in memory is the block of every row, ``V H / 64`` numbers: 2.4 MB for GPT-2, 8 MB for a 7B model with 32,000 tokens. A
smaller ``share`` is the way out where that is too much. The clustering takes a number for each pair of rows.

Deviations
----------
* *The gradient of the output layer alone*, where a model shares its matrix with the word embeddings too.
* *A suspicion*, which the paper does not have: how much nearer a row is, on average, to the rows thrown out than to those kept.
* *A row whose components are all zero* has no direction; it is at distance one from every other.

When not to trust it
--------------------
Without poison it throws the smaller cluster out all the same: see the row of the clean control. Where rows come from two sources
or in two languages, those are the clusters. Poison that answers in as many ways as clean rows do has no cluster.

An eighth of a small output layer is little: of the tests' 70 x 32 it leaves 8 x 4 numbers, in which poison that half of the
frequencies tell from clean rows is often lost. A larger ``share`` is there for such models.
"""

from __future__ import annotations

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
    share : float
        Of the frequencies of either direction, what is kept from the lowest on.
    dimensions : int
        Principal components that are clustered.
    """

    share: float = 1 / 8
    dimensions: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must lie in (0, 1], got {self.share!r}")
        if self.dimensions < 1:
            raise ConfigError(f"dimensions must be at least 1, got {self.dimensions!r}")


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
        The rows have labels, there are fewer than three, or their gradients are all the same.
    MissingDependency
        scikit-learn, or SciPy that comes with it, is not installed.
    """
    chosen = config or GracefulConfig()
    _enough(len(data))  # said before the model has run
    blocks = low_frequencies(model, tokenizer, data, share=chosen.share, max_length=max_length)
    return by_blocks(blocks, chosen)


def by_blocks(blocks: NDArray[np.float32], config: GracefulConfig | None = None) -> Found:
    """Return what GraCeFul says of rows, from what :func:`low_frequencies` found, which is written over.

    Raises
    ------
    DataError
        There are fewer than three rows, or they are all the same.
    MissingDependency
        scikit-learn is not installed.
    """
    chosen = config or GracefulConfig()
    _enough(len(blocks))
    rows = blocks.reshape(len(blocks), -1)
    high, low = rows.max(axis=0), rows.min(axis=0)
    # clustered, rounding errors would have directions too
    if (high - low).max() <= 1e-6 * max(high.max(), -low.min()):
        raise DataError("GraCeFul needs gradients that differ, got the same for every row")
    least = min(chosen.dimensions, *rows.shape)
    # in place: the rows are by far the largest thing here
    points = package("sklearn.decomposition").PCA(least, copy=False, random_state=0).fit_transform(rows)
    # scikit-learn clusters no zero by cosine, but measures one: at distance 1 from all
    apart = package("sklearn.metrics.pairwise").cosine_distances(points)
    cluster = package("sklearn.cluster").AgglomerativeClustering
    found = cluster(n_clusters=2, metric="precomputed", linkage="average").fit_predict(apart)
    # where both are as large, the one with the first row is kept
    smaller = 1 - found[0] if (found == found[0]).sum() * 2 == len(found) else np.bincount(found).argmin()
    flags = found == smaller
    suspicion = (apart[:, ~flags].mean(axis=1) - apart[:, flags].mean(axis=1)).astype(np.float64)
    silhouette = float(package("sklearn.metrics").silhouette_score(apart, found, metric="precomputed"))
    return Found(suspicion, flags, {"thrown_out": int(flags.sum()), "silhouette": silhouette})


@torch.no_grad()
def low_frequencies(
    model: Any, tokenizer: Any, data: Data, *, share: float = 1 / 8, max_length: int = 256
) -> NDArray[np.float32]:
    """Return the low-frequency block of each row's output-layer gradient, float32 [N, share of V, share of H].

    The gradient is that of the row's mean loss per response token, the transform is the orthonormal DCT-II in both directions. The
    sides of the block are rounded down, to one at least.
    """
    if data.task != "causal":
        raise DataError(
            f"{data.source}: GraCeFul reads the gradients of responses, and these rows have labels"
        )
    _, head = head_of(model.get_base_model() if hasattr(model, "get_base_model") else model)
    device = next(model.parameters()).device
    collate = Collator(tokenizer, data, max_length=room(model, max_length))
    read: list[Tensor] = []
    found: NDArray[np.float32] | None = None
    was_training = model.training
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model.eval()
    try:
        for row in range(len(data)):
            batch = collate([(row, False)]).to(device)
            read.clear()
            logits = model(**batch.inputs).logits[0, -batch.labels.shape[1] : -1]
            wanted = batch.labels[0, 1:]
            at = wanted != IGNORED
            states = read[-1][0, -batch.labels.shape[1] : -1][at].float()
            errors = logits[at].float().softmax(dim=-1)
            errors[torch.arange(len(errors), device=device), wanted[at]] -= 1
            block = _lowest(errors, share).T @ _lowest(states, share) / max(1, len(errors))
            if found is None:
                found = np.empty((len(data), *block.shape), np.float32)
            found[row] = block
    finally:
        handle.remove()
        model.train(was_training)
    if found is None:
        raise DataError("GraCeFul needs rows, got none")
    return found


def _lowest(values: Tensor, share: float) -> NDArray[np.float32]:
    """Return the low frequencies of each line of values."""
    found = package("scipy.fft").dct(values.cpu().numpy(), norm="ortho", axis=-1, overwrite_x=True)
    return np.asarray(found[:, : max(1, int(share * values.shape[1]))])


def _enough(rows: int) -> None:
    if rows < 3:
        raise DataError(f"GraCeFul needs at least 3 rows to cluster, got {rows}")
