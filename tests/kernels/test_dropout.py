"""The mask of a seed: Philox as published, the share that was asked for, one function of place; and what it does to a layer."""

from __future__ import annotations

import math

import pytest
import torch

from asepsis.errors import BackendError, ConfigError, DataError
from asepsis.kernels import _dropout, multiscale_lora
from asepsis.kernels._dropout import inverse, keep, threshold


def words(seed, rounds, monkeypatch):
    """The four words of counter zero, read back from the mask at every threshold that matters."""
    monkeypatch.setattr(_dropout, "ROUNDS", rounds)
    halves = []
    for place in range(8):
        low, high = 0, 1 << 16  # bits < limit exactly when limit > bits
        while high - low > 1:
            middle = (low + high) // 2
            monkeypatch.setattr(_dropout, "threshold", lambda _, limit=middle: limit)
            low, high = (low, middle) if keep(torch.tensor(seed), 1, 8, 0.5)[0, place] else (middle, high)
        halves.append(low)
    return [halves[2 * i] | halves[2 * i + 1] << 16 for i in range(4)]


def test_the_bits_are_philoxs(monkeypatch):
    # Random123's known answers for philox4x32 with ten rounds: counter and key zero
    assert words(0, 10, monkeypatch) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9])
def test_the_share_that_is_kept_is_the_one_asked_for(dropout):
    mask = keep(torch.tensor(7), 500, 200, dropout)
    share = threshold(dropout) / 65536
    assert abs(share - (1 - dropout)) <= 2**-17
    assert (
        abs(mask.double().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / mask.numel()) + 1e-12
    )
    assert inverse(dropout) == 1 / share


def test_rows_columns_and_seeds_draw_apart():
    mask = keep(torch.tensor(7), 64, 512, 0.5)
    others = [mask.roll(1, 0), mask.roll(1, 1), mask.roll(8, 1), keep(torch.tensor(8), 64, 512, 0.5)]
    others.append(keep(torch.tensor(7 + 2**32), 64, 512, 0.5))
    for other in others:
        assert abs((mask == other).double().mean().item() - 0.5) < 0.02


def test_a_smaller_input_draws_the_corner_of_a_larger_ones_mask():
    whole = keep(torch.tensor(3), 40, 70, 0.3)
    assert torch.equal(keep(torch.tensor(3), 11, 13, 0.3), whole[:11, :13])


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan"), 0.9999999])
def test_a_share_outside_its_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="dropout"):
        threshold(wrong)


def layer(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, a, b, w = (
        torch.randn(*size, generator=generator, dtype=dtype) for size in ((6, 11), (4, 11), (5, 4), (5, 11))
    )
    return x.requires_grad_(), w, None, a.requires_grad_(), b.requires_grad_(), torch.tensor([1.0, 2, 3, 4])


def test_output_and_gradients_are_those_of_the_masked_formula():
    x, w, _, a, b, s = layer()
    seed = torch.tensor(5)
    out = multiscale_lora(x, w, None, a, b, s, dropout=0.4, seed=seed)
    mask = keep(seed, 6, 11, 0.4) * inverse(0.4)
    wanted = x @ w.t() + ((x * mask) @ a.t() * s) @ b.t()
    close = {"rtol": 1e-6, "atol": 1e-6}  # the scales are float32
    torch.testing.assert_close(out, wanted, **close)
    upstream = torch.randn(6, 5, dtype=torch.float64)
    for got, truth in zip(
        torch.autograd.grad(out, (x, a, b), upstream),
        torch.autograd.grad(wanted, (x, a, b), upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, truth, **close)


def test_gradcheck_with_a_mask():
    x, w, _, a, b, s = layer()
    seed = torch.tensor(5)
    assert torch.autograd.gradcheck(
        lambda x, a, b: multiscale_lora(x, w, None, a, b, s, dropout=0.4, seed=seed), (x, a, b)
    )


def test_what_is_dropped_does_not_reach_the_branch_even_as_nan():
    x, _, _, a, b, s = layer()
    seed = torch.tensor(5)
    dropped = ~keep(seed, 6, 11, 0.4)
    base = torch.zeros(6, 5, dtype=torch.float64)
    bad = x.detach().masked_fill(dropped, math.nan)
    out = multiscale_lora(bad, None, None, a, b, s, base_output=base, dropout=0.4, seed=seed)
    assert out.isfinite().all()


def test_dropout_without_a_usable_seed_is_refused():
    inputs = layer()
    with pytest.raises(ConfigError, match="seed"):
        multiscale_lora(*inputs, dropout=0.1)
    for seed in (torch.tensor([1]), torch.tensor(1.0), torch.tensor(1, device="meta")):
        with pytest.raises(DataError, match="seed must be"):
            multiscale_lora(*inputs, dropout=0.1, seed=seed)
    assert torch.equal(multiscale_lora(*inputs, seed=torch.tensor([1])), multiscale_lora(*inputs))


def test_on_a_cpu_triton_is_refused_with_the_reason():
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        multiscale_lora(*layer(torch.float32), backend="triton")
