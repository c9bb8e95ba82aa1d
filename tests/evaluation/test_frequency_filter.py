"""The filter is the one that is documented, and takes mappings apart into slow and fast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asepsis.evaluation.frequency import compare, default_sigmas, low_pass, neighbors


def naive_low(x: np.ndarray, values: np.ndarray, sigma: float, kernel: str) -> np.ndarray:
    low = np.zeros_like(values)
    for i in range(len(x)):
        weights = []
        for j in range(len(x)):
            d = math.sqrt(((x[i] - x[j]) ** 2).sum())
            weights.append(math.exp(-d / (2 * sigma) if kernel == "laplace" else -(d**2) / (2 * sigma**2)))
        low[i] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return low


@pytest.mark.parametrize("kernel", ["laplace", "gauss"])
def test_the_filter_is_the_normalized_exponential_of_distances(kernel: str) -> None:
    rng = np.random.default_rng(0)
    x, values = rng.normal(size=(17, 5)), rng.normal(size=(17, 3))
    low = low_pass(torch.from_numpy(x), torch.from_numpy(values), [0.3, 2.0], kernel=kernel)
    assert low.shape == (2, 17, 3) and low.dtype == torch.float64
    for at, sigma in enumerate([0.3, 2.0]):
        np.testing.assert_allclose(low[at].numpy(), naive_low(x, values, sigma, kernel), atol=1e-6)


@pytest.mark.parametrize("block", [1, 5, 16])
def test_chunks_change_nothing(block: int) -> None:
    torch.manual_seed(1)
    x, values = torch.randn(17, 4), torch.randn(17, 2)
    whole = low_pass(x, values, [0.5, 1.0], block=17)
    torch.testing.assert_close(low_pass(x, values, [0.5, 1.0], block=block), whole, rtol=0, atol=1e-7)


def test_the_two_parts_add_up_to_the_mapping() -> None:
    # filtering is linear and keeps constants, so the high part's own low part is what is left of filtering twice
    torch.manual_seed(6)
    x, values = torch.randn(20, 4), torch.randn(20, 3).double()
    low = low_pass(x, values, [0.7])[0]
    high = values - low
    again, left = low_pass(x, low, [0.7])[0], low_pass(x, high, [0.7])[0]
    torch.testing.assert_close(again + left, low, rtol=0, atol=1e-12)
    bands = compare(low, low_pass(x, low, [0.7]), values, low[None])
    assert bands.e_high[0] == pytest.approx(
        float((low - again - high).norm(dim=1).mean() / high.norm(dim=1).mean()), rel=1e-12
    )
    constant = torch.full((20, 2), 0.5)
    torch.testing.assert_close(low_pass(x, constant, [0.7])[0], constant.double(), rtol=0, atol=1e-12)


def test_two_separated_clusters_are_all_low_frequency() -> None:
    torch.manual_seed(2)
    x = torch.randn(20, 3) + 200 * (torch.arange(20) % 2).unsqueeze(1)
    values = torch.nn.functional.one_hot(torch.arange(20) % 2, 2).double()
    low = low_pass(x, values, [1.0], kernel="gauss")[0]
    torch.testing.assert_close(low, values, rtol=0, atol=1e-12)
    bands = compare(values, low[None], values, low[None])
    assert bands.lfr == pytest.approx([1.0]) and bands.hfr == pytest.approx([0.0], abs=1e-12)


def test_a_mapping_that_alternates_between_neighbors_is_all_high_frequency() -> None:
    x = torch.arange(200.0).unsqueeze(1)
    values = (1.0 - 2.0 * (torch.arange(200) % 2)).double().unsqueeze(1)
    low = low_pass(x, values, [4.0], kernel="gauss")
    bands = compare(values, low, values, low)
    assert bands.lfr[0] < 0.02
    assert bands.hfr[0] == pytest.approx(1, abs=0.02)


def test_errors_tell_which_part_is_learned() -> None:
    # a slow mapping plus an alternation; the model has learned the slow one only
    x = torch.arange(200.0).unsqueeze(1)
    slow = torch.sin(x.double() / 30)
    answers = slow + (1.0 - 2.0 * (torch.arange(200) % 2)).double().unsqueeze(1)
    low, low_answers = (low_pass(x, v, [4.0], kernel="gauss") for v in (slow, answers))
    bands = compare(slow, low, answers, low_answers)
    assert bands.e_low[0] < 0.05
    assert 0.9 < bands.e_high[0] < 1.1


def test_constant_labels_give_nan_for_the_high_part_and_never_infinity() -> None:
    torch.manual_seed(3)
    x, outputs = torch.randn(30, 4), torch.rand(30, 2).double().softmax(dim=1)
    answers = torch.nn.functional.one_hot(torch.ones(30, dtype=torch.int64), 2).double()
    low, low_answers = low_pass(x, outputs, [0.5, 2.0]), low_pass(x, answers, [0.5, 2.0])
    bands = compare(outputs, low, answers, low_answers)
    assert np.isnan(bands.e_high).all()
    assert np.isfinite(bands.e_low).all() and np.isfinite(bands.hfr).all()
    assert bands.to_dict()["e_high"] == [None, None]


def test_chosen_widths_average_over_the_stated_share_of_rows() -> None:
    torch.manual_seed(4)
    x = torch.randn(400, 64)  # distances concentrate; quantiles of them would all average over everything
    for kernel in ("laplace", "gauss"):
        sigmas = default_sigmas(x, kernel=kernel)
        assert list(sigmas) == sorted(sigmas)
        assert neighbors(x, sigmas, kernel=kernel) == pytest.approx([8, 20, 40, 100, 200], rel=0.02)
    assert default_sigmas(x * 10)[2] == pytest.approx(10 * default_sigmas(x)[2], rel=1e-3)
