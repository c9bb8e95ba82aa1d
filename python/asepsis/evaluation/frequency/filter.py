"""A filter over unordered inputs: the low-frequency part of a mapping is its average over neighboring rows.

The mathematics of :mod:`asepsis.evaluation.frequency`, on tensors alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asepsis.errors import ConfigError, DataError

Kernel = Literal["laplace", "gauss"]
Floats = NDArray[np.float64]

PAPER_SIGMAS: tuple[float, ...] = tuple(np.linspace(2, 8, 25).tolist())
"""The 25 widths of the authors' code."""

_SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)
_MOST_QUERIES = 256  # rows looked at when widths are chosen
_NOTHING = 1e-6  # below this a part of the labels, whose rows have norm 1, is rounding


@dataclass(frozen=True)
class Bands:
    """Numbers of one subset, one per sigma, float64 [S].

    Attributes
    ----------
    e_low, e_high : ndarray
        Mean distance between the model's and the labels' part, relative to the mean norm of the labels' part. NaN
        where the labels have no such part (constant labels have no high-frequency one) and where outputs are NaN.
    lfr, hfr : ndarray
        Mean norm of the part of the model's outputs, relative to the mean norm of the outputs.
    """

    e_low: Floats
    e_high: Floats
    lfr: Floats
    hfr: Floats

    def to_dict(self) -> dict[str, list[float | None]]:
        """Return the numbers JSON-ready; NaN, which JSON does not know, as None."""
        return {
            name: [None if math.isnan(x) else float(f"{x:.6g}") for x in numbers.tolist()]
            for name, numbers in vars(self).items()
        }


def low_pass(
    inputs: Tensor, values: Tensor, sigmas: Sequence[float], *, kernel: Kernel = "laplace", block: int = 256
) -> Tensor:
    """Average a mapping over neighbors: its low-frequency part; ``values`` less this is the high-frequency part.

    ``softmax_j(-d_ij / (2 sigma))`` weighs row j for row i (``"laplace"``: the authors' code), or
    ``softmax_j(-d_ij^2 / (2 sigma^2))`` (``"gauss"``: their text), d being the Euclidean distance. Distances are made
    for ``block`` rows at a time, so memory grows with ``block * N``.

    Parameters
    ----------
    inputs : Tensor [N, D]
    values : Tensor [N, C]
        What the mapping gives for each row.
    sigmas : sequence of float
        Widths, positive, in the unit of the distances.

    Returns
    -------
    Tensor [S, N, C], float64

    Raises
    ------
    ConfigError
        A width is not positive and finite, the kernel is unknown, or ``block`` is not positive.
    """
    widths = checked_sigmas(sigmas)
    if block < 1:
        raise ConfigError(f"block must be at least 1, got {block!r}")
    points, mapped = inputs.double(), values.double()
    low = mapped.new_empty(len(widths), *mapped.shape)
    for start in range(0, len(points), block):
        distances = _distances(points[start : start + block], points)
        for at, sigma in enumerate(widths):
            low[at, start : start + block] = _scores(distances, sigma, kernel).softmax(dim=1) @ mapped
    return low


def default_sigmas(inputs: Tensor, *, kernel: Kernel = "laplace") -> tuple[float, ...]:
    """Return rising widths under which a row is averaged over about 2, 5, 10, 25 and 50 % of the rows.

    Averaged over a number of rows means: the mean over rows of the exponential of the weights' entropy (see
    :func:`neighbors`). Quantiles of the distances would be of little use: between long vectors nearly all distances
    are alike, and a width of their size averages over everything.

    Raises
    ------
    DataError
        All inputs are the same.
    """
    distances = _distances(*_some_queries(inputs))
    longest = float(distances.max())
    if not longest > 1e-6 * max(1.0, float(inputs.abs().max())):
        raise DataError("all probe rows have the same input embedding; there are no neighbors to tell apart")
    found = []
    for share in _SHARES:
        wanted = max(1.5, share * len(inputs))
        narrow, wide = math.log(longest * 1e-4), math.log(longest * 1e3)
        for _ in range(30):
            middle = (narrow + wide) / 2
            if _perplexity(_scores(distances, math.exp(middle), kernel)) < wanted:
                narrow = middle
            else:
                wide = middle
        found.append(float(f"{math.exp(wide):.4g}"))
    return tuple(sorted(set(found)))


def neighbors(inputs: Tensor, sigmas: Sequence[float], *, kernel: Kernel = "laplace") -> Floats:
    """Return over how many rows each width averages, itself included: exp of the weights' entropy, mean [S]."""
    distances = _distances(*_some_queries(inputs))
    return np.array([_perplexity(_scores(distances, sigma, kernel)) for sigma in checked_sigmas(sigmas)])


def compare(outputs: Tensor, low: Tensor, answers: Tensor, low_answers: Tensor) -> Bands:
    """Compare a mapping's parts with those of the answers, over the rows given.

    Parameters
    ----------
    outputs, answers : Tensor [N, C]
    low, low_answers : Tensor [S, N, C]
        What :func:`low_pass` made of them, over all rows, of which these may be some.
    """
    high, high_answers, size = outputs - low, answers - low_answers, _mean_norm(outputs)
    return Bands(
        e_low=_ratio(_mean_norm(low - low_answers), _mean_norm(low_answers)),
        e_high=_ratio(_mean_norm(high - high_answers), _mean_norm(high_answers)),
        lfr=_ratio(_mean_norm(low), size),
        hfr=_ratio(_mean_norm(high), size),
    )


def checked_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the widths, or raise ``ConfigError`` where one is not positive and finite or there is none."""
    widths = tuple(float(sigma) for sigma in sigmas)
    if not widths or not all(0 < sigma < math.inf for sigma in widths):
        raise ConfigError(f"sigmas must be positive numbers, one at least, got {list(widths)}")
    return widths


def _distances(queries: Tensor, points: Tensor) -> Tensor:
    return torch.cdist(queries, points, compute_mode="use_mm_for_euclid_dist")


def _scores(distances: Tensor, sigma: float, kernel: Kernel) -> Tensor:
    if kernel == "laplace":
        return distances / (-2 * sigma)
    if kernel == "gauss":
        return (distances / sigma).square() / -2
    raise ConfigError(f"kernel must be 'laplace' or 'gauss', got {kernel!r}")


def _some_queries(inputs: Tensor) -> tuple[Tensor, Tensor]:
    points = inputs.double()
    return points[:: -(-len(points) // _MOST_QUERIES)], points


def _perplexity(scores: Tensor) -> float:
    weights = scores.softmax(dim=1)
    return float(torch.special.entr(weights).sum(dim=1).exp().mean())


def _mean_norm(parts: Tensor) -> Floats:
    """Mean over rows of the norm: ``[..., N, C]`` to ``[...]``."""
    norms: Floats = parts.norm(dim=-1).mean(dim=-1).numpy()
    return norms


def _ratio(part: Floats, whole: Floats) -> Floats:
    quotient: Floats = part / np.where(whole > _NOTHING, whole, np.nan)
    return quotient
