"""CUBE: poisoned rows lie in clusters of their own; of each class only the largest cluster is kept.

Paper: "A Unified Evaluation of Textual Backdoor Learning: Frameworks and Benchmarks" (Cui et al., NeurIPS 2022 Datasets and
Benchmarks, arXiv 2206.08514).

Certain (paper and the authors' toolkit): a model trained on the poisoned rows makes pooled hidden states; UMAP without a least
distance brings them to a low dimension; HDBSCAN clusters all rows at once; of the rows of each label the largest predicted
cluster is kept and everything else, what HDBSCAN calls noise included, is thrown out; the victim is trained on the rest. In the
toolkit the encoder is a RoBERTa of its own, trained for 10 epochs, and ``min_samples`` is 100.

Assumed: 100 neighbors, which the toolkit has where it draws, and 10 dimensions.

Deviations
----------
* *The encoder is the undefended model of the same grid*, trained as the victim is, in place of a RoBERTa of its own.
* *``min_samples`` is a share of the rows*, the toolkit's 100 of the 6,920 rows of SST-2.
* *A suspicion*, which the paper does not have: the distance of a row from the center of what is kept of its label, over the
  median distance of the rows kept.
* *PCA can take UMAP's place* (``reduction="pca"``), where its compiler is not wanted. It keeps distances as they are, where UMAP
  pulls clumps apart, and is another, much weaker method: take no defeat of it for a defeat of CUBE.

When not to trust it
--------------------
Without poison it throws rows out all the same: noise, and the smaller parts of a class that falls apart. Where more than half
of a class is poison, the poison is what is kept. A clean-label attack that looks like its class has no cluster of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.baselines._found import Found
from asepsis.evaluation.baselines._packages import package


@dataclass(frozen=True, kw_only=True)
class CubeConfig(DefenseConfig):
    """Settings of CUBE.

    Attributes
    ----------
    reduction : {"umap", "pca"}
        What brings the states to a low dimension.
    dimensions : int
        Of the space that is clustered.
    neighbors : int
        Of each row, for UMAP.
    density : float
        Rows that make a place dense, as a share of all: ``min_samples`` of HDBSCAN.
    """

    reduction: Literal["umap", "pca"] = "umap"
    dimensions: int = 10
    neighbors: int = 100
    density: float = 100 / 6920

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("dimensions", 1), ("neighbors", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)!r}")
        if not 0 < self.density < 1:
            raise ConfigError(f"density must lie in (0, 1), got {self.density!r}")


def by_clusters(
    states: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    config: CubeConfig | None = None,
    *,
    seed: int = 0,
) -> Found:
    """Return what CUBE says of rows, from their pooled hidden states.

    Parameters
    ----------
    states : ndarray [N, H]
    labels : ndarray of int64 [N]
    config : CubeConfig, optional
    seed : int
        Of UMAP.

    Raises
    ------
    DataError
        States and labels differ in length, states are not finite, or there are fewer than ten rows.
    MissingDependency
        scikit-learn or umap-learn is not installed.
    """
    chosen = config or CubeConfig()
    if len(states) != len(labels) or not np.isfinite(states).all():
        raise DataError(
            f"CUBE needs one finite state a row, got {states.shape} states for {len(labels)} rows"
        )
    if len(states) < 10:
        raise DataError(f"CUBE needs at least 10 rows to cluster, got {len(states)}")
    if chosen.reduction == "pca":
        points = _principal(np.asarray(states, np.float64), chosen.dimensions)
    else:
        points = _umap(states, chosen, seed)
    least = min(len(points), max(2, round(chosen.density * len(points))))
    clusters = package("sklearn.cluster").HDBSCAN(min_samples=least, copy=True).fit_predict(points)
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


def _umap(states: NDArray[np.floating[Any]], config: CubeConfig, seed: int) -> NDArray[np.float64]:
    reduce = package("umap").UMAP(
        n_components=config.dimensions,
        n_neighbors=min(config.neighbors, len(states) - 1),
        min_dist=0.0,
        random_state=seed,
        n_jobs=1,  # a seed holds for one thread only
    )
    return np.asarray(reduce.fit_transform(np.asarray(states, np.float32)), np.float64)


def _principal(states: NDArray[np.float64], dimensions: int) -> NDArray[np.float64]:
    """Return the first principal components; each has the sign that makes its largest part positive."""
    centered = states - states.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:dimensions]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return np.asarray(centered @ axes.T)


def _distances(points: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    far = np.linalg.norm(points - points[kept].mean(axis=0), axis=1)
    return np.asarray(far / max(float(np.median(far[kept])), np.finfo(np.float64).tiny))
