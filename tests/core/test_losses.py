from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asepsis.core.losses import BoundedAscent, Flooding, LossRule, auto_gamma, coefficients, group_totals
from asepsis.errors import ConfigError

NONE_ISOLATED = torch.zeros(6, dtype=torch.bool)


def sample_losses(scores: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(-scores)


def step_gradient(rule: LossRule, parts: list[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
    """What a driver does in one step whose rows come in several micro-batches."""
    scores = scores.clone().requires_grad_()
    ones = [torch.ones(len(part), dtype=torch.int64) for part in parts]
    none = [torch.zeros(len(part), dtype=torch.bool) for part in parts]
    totals = torch.stack([group_totals(n, i) for n, i in zip(ones, none, strict=True)]).sum(0)
    mean = torch.zeros(())
    for part, n, i in zip(parts, ones, none, strict=True):
        losses = sample_losses(scores[part])
        weights = coefficients(n, i, totals)
        (weights * rule.shape(losses, i)).sum().backward()
        mean = mean + (weights * losses.detach()).sum()
    direction = rule.direction(mean)
    return scores.grad if direction is None else scores.grad * direction


@pytest.mark.parametrize("gamma", [0.05, 0.4, 0.9, 3.0])
def test_batch_flooding_has_the_gradient_of_local_ascent_and_of_flooding(gamma):
    scores = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7, 5.0])
    got = step_gradient(Flooding(gamma), [torch.arange(6)], scores)
    for form in (
        lambda m: torch.sign(m - gamma).detach() * m,
        lambda m: (m - gamma).abs() + gamma,
    ):
        wanted = scores.clone().requires_grad_()
        form(sample_losses(wanted).mean()).backward()
        torch.testing.assert_close(got, wanted.grad)


def test_sample_flooding_has_the_gradient_of_both_forms_row_by_row():
    gamma, scores = 0.5, torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7, 5.0])
    got = step_gradient(Flooding(gamma, "sample"), [torch.arange(6)], scores)
    for form in (
        lambda x: torch.sign(x - gamma).detach() * x,
        lambda x: (x - gamma).abs() + gamma,
    ):
        wanted = scores.clone().requires_grad_()
        form(sample_losses(wanted)).mean().backward()
        torch.testing.assert_close(got, wanted.grad)
    assert {-1.0, 1.0} == set(torch.sign(got).tolist()), "the case needs rows on both sides of the level"


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=12),
    st.integers(1, 3),
    st.floats(0.05, 2.0),
)
def test_the_batch_sign_survives_accumulation(scores, cut, gamma):
    x = torch.tensor(scores)
    rows = torch.arange(len(x))
    mean = float(sample_losses(x).mean())
    if abs(mean - gamma) < 1e-4:
        return
    one = step_gradient(Flooding(gamma), [rows], x)
    two = step_gradient(Flooding(gamma), [rows[:cut], rows[cut:]], x)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_micro_batches_on_opposite_sides_follow_the_mean_of_the_step():
    scores = torch.tensor([9.0, 9.0, -3.0, -3.0])  # losses near 0, 0, 3, 3
    grad = step_gradient(Flooding(1.0), [torch.tensor([0, 1]), torch.tensor([2, 3])], scores)
    assert (grad < 0).all(), "the mean is 1.5, above the level: every row descends, the first two as well"


def test_bounded_ascent_leaves_rows_above_the_bound_alone():
    losses = torch.tensor([0.2, 1.9, 2.1, 0.7], requires_grad=True)
    isolated = torch.tensor([True, True, True, False])
    BoundedAscent(2.0).shape(losses, isolated).sum().backward()
    assert losses.grad.tolist() == [-1.0, -1.0, 0.0, 1.0]


def test_weights_make_the_mean_over_tokens_of_each_group():
    counts = torch.tensor([3, 1, 0, 4])
    isolated = torch.tensor([False, False, False, True])
    totals = group_totals(counts, isolated)
    assert totals.tolist() == [4.0, 4.0]
    weights = coefficients(counts, isolated, totals)
    assert weights.tolist() == [0.75, 0.25, 0.0, 1.0]
    token_sums = torch.tensor([6.0, 10.0, 0.0, 2.0])
    means = token_sums / counts.clamp(min=1)
    assert float((weights * means)[~isolated].sum()) == 16.0 / 4


def test_a_group_without_targets_weighs_nothing_instead_of_nan():
    counts, isolated = torch.tensor([0, 2]), torch.tensor([True, False])
    assert coefficients(counts, isolated, group_totals(counts, isolated)).tolist() == [0.0, 1.0]


def test_auto_gamma_keeps_the_papers_share_of_the_chance_level():
    assert auto_gamma(10) == pytest.approx(0.5, abs=1e-3)
    assert auto_gamma(2) == pytest.approx(0.1504, abs=1e-4)
    assert auto_gamma(None, 4.0) == pytest.approx(1.4)


@pytest.mark.parametrize("initial", [None, 0.0, -1.0, math.nan, math.inf])
def test_auto_gamma_for_causal_models_refuses_without_a_usable_loss(initial):
    with pytest.raises(ConfigError, match="first mean loss"):
        auto_gamma(None, initial)


@pytest.mark.parametrize("level", [0.0, -1.0, math.nan, math.inf])
def test_levels_that_are_not_positive_and_finite_are_refused(level):
    with pytest.raises(ConfigError, match="gamma"):
        Flooding(level)
    with pytest.raises(ConfigError, match="max_loss"):
        BoundedAscent(level)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigError, match="reduction"):
        Flooding(0.5, "mean")  # type: ignore[arg-type]
