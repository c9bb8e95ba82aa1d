"""CUBE: poisoned rows lie in clusters of their own; of each class only the largest cluster is kept.

Paper: "A Unified Evaluation of Textual Backdoor Learning: Frameworks and Benchmarks" (Cui et al., NeurIPS 2022 Datasets and
Benchmarks, arXiv 2206.08514).

Certain (paper and the authors' toolkit): a model trained on the poisoned rows makes pooled hidden states; UMAP brings them to a
low dimension; HDBSCAN clusters all rows at once; of the rows of each label the largest predicted cluster is kept and everything
else, what HDBSCAN calls noise included, is thrown out; the victim is trained on the rest. In the toolkit the encoder is a
RoBERTa of its own, trained for 10 epochs, and ``min_samples`` is 100.

Deviations
----------
* *PCA in place of UMAP*: no second compiler for one baseline. PCA keeps distances as they are, where UMAP pulls clumps apart, so
  a small group near its class is found less often; read a defeat of this baseline with that in mind.
* *The encoder is the undefended model of the same grid*, trained as the victim is, in place of a RoBERTa of its own.
* *``min_samples`` is a share of the rows*, the toolkit's 100 of the 6,920 rows of SST-2.
* *A suspicion*, which the paper does not have: the distance of a row from the center of what is kept of its label, over the
  median distance of the rows kept.

When not to trust it
--------------------
Without poison it throws rows out all the same: noise, and the smaller parts of a class that falls apart. Where more than half
of a class is poison, the poison is what is kept. A clean-label attack that looks like its class has no cluster of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.baselines._found import Found
from asepsis.evaluation.baselines._scikit import scikit


@dataclass(frozen=True, kw_only=True)
class CubeConfig(DefenseConfig):
    """Settings of CUBE.

    Attributes
    ----------
    dimensions : int
        Of the space that is clustered.
    density : float
        Rows that make a place dense, as a share of all: ``min_samples`` of HDBSCAN.
    """

    dimensions: int = 10
    density: float = 100 / 6920

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimensions < 1:
            raise ConfigError(f"dimensions must be at least 1, got {self.dimensions!r}")
        if not 0 < self.density < 1:
            raise ConfigError(f"density must lie in (0, 1), got {self.density!r}")


def by_clusters(
    states: NDArray[np.floating[Any]], labels: NDArray[np.int64], config: CubeConfig | None = None
) -> Found:
    """Return what CUBE says of rows, from their pooled hidden states.

    Parameters
    ----------
    states : ndarray [N, H]
    labels : ndarray of int64 [N]
    config : CubeConfig, optional

    Raises
    ------
    DataError
        States and labels differ in length, states are not finite, or there are fewer than ten rows.
    MissingDependency
        scikit-learn is not installed.
    """
    chosen = config or CubeConfig()
    if len(states) != len(labels) or not np.isfinite(states).all():
        raise DataError(
            f"CUBE needs one finite state a row, got {states.shape} states for {len(labels)} rows"
        )
    if len(states) < 10:
        raise DataError(f"CUBE needs at least 10 rows to cluster, got {len(states)}")
    points = _reduced(np.asarray(states, np.float64), chosen.dimensions)
    least = min(len(points), max(2, round(chosen.density * len(points))))
    clusters = scikit("cluster").HDBSCAN(min_samples=least, copy=True).fit_predict(points)
    flags = np.zeros(len(points), bool)
    suspicion = np.zeros(len(points))
    report: dict[str, Any] = {"min_samples": least, "noise": int((clusters == -1).sum()), "clusters": {}}
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        names, sizes = np.unique(clusters[own], return_counts=True)
        kept = clusters[own] == names[sizes.argmax()]
        flags[own] = ~kept
        suspicion[own] = _distances(points[own], kept)
        report["clusters"][str(label)] = sorted(sizes.tolist(), reverse=True)
    return Found(suspicion, flags, report)


def _reduced(states: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Return the first principal components; each has the sign that makes its largest part positive."""
    centered = states - states.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:dimensions]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return np.asarray(centered @ axes.T)


def _distances(points: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    far = np.linalg.norm(points - points[kept].mean(axis=0), axis=1)
    return np.asarray(far / max(float(np.median(far[kept])), np.finfo(np.float64).tiny))
