"""Losses of packed samples: those of the samples one by one, wherever they stand in their rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from asepsis.errors import ConfigError, DataError
from asepsis.kernels import linear_sample_loss, sample_loss


def case():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 12, generator=generator)
    weight = torch.randn(31, 12, generator=generator)
    labels = torch.randint(31, (2, 9), generator=generator)
    labels[0, 2] = labels[1, 8] = -100
    #                        sample 2, then 0 into the next row; 3 has nothing; -1 is padding
    segments = torch.tensor([[2, 2, 2, 2, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, -1, -1, 2]])
    return hidden, weight, labels, segments


def lean(hidden, weight, labels, **more):
    return linear_sample_loss(hidden, weight, labels, **more)


def through_logits(hidden, weight, labels, **more):
    return sample_loss(F.linear(hidden, weight), labels, **more)


WAYS = pytest.mark.parametrize("way", [lean, through_logits])


@WAYS
def test_totals_counts_and_gradients_are_those_of_each_sample_alone(way):
    hidden, weight, labels, segments = case()
    hidden.requires_grad_(), weight.requires_grad_()
    total, count = way(hidden, weight, labels, segments=segments, n_segments=4)
    factors = torch.tensor([1.0, -2.0, 3.0, 5.0])
    got = torch.autograd.grad((total * factors).sum(), [hidden, weight])
    alone = [way(hidden[segments == i][None], weight, labels[segments == i][None]) for i in range(4)]
    torch.testing.assert_close(total, torch.cat([t for t, _ in alone]))
    assert torch.equal(count, torch.cat([n for _, n in alone]))
    assert (total[3].item(), count[3].item()) == (0.0, 0)
    wanted = torch.autograd.grad(
        sum(f * t for f, (t, _) in zip(factors, alone, strict=True)).sum(), [hidden, weight]
    )
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.count_nonzero(got[0][segments == -1]) == 0


@WAYS
def test_one_segment_a_row_is_no_packing_at_all(way):
    hidden, weight, labels, _ = case()
    plain, packed = (
        way(hidden, weight, labels, **more)
        for more in ({}, {"segments": torch.tensor([[0], [1]]).expand(2, 9), "n_segments": 2})
    )
    torch.testing.assert_close(packed[0], plain[0])
    assert torch.equal(packed[1], plain[1])


@WAYS
def test_rows_of_one_label_are_summed_by_segment_too(way):
    hidden, weight, labels, _ = case()
    segments = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1])
    total, count = way(hidden[0], weight, labels[0], segments=segments, n_segments=2)
    plain = way(hidden[0], weight, labels[0])[0]
    torch.testing.assert_close(total, torch.stack([plain[segments == i].sum() for i in range(2)]))
    assert count.tolist() == [3, 5]


@WAYS
def test_a_number_beyond_the_last_is_no_quiet_number(way):
    hidden, weight, labels, segments = case()
    total, _ = way(hidden, weight, labels, segments=segments, n_segments=2)
    assert total.isnan().tolist() == [True, True]


@WAYS
@pytest.mark.parametrize("n", [0, 3])
def test_no_position_or_no_segment_at_all_is_nothing(way, n):
    hidden, weight, labels, segments = case()
    total, count = way(hidden[:, :0], weight, labels[:, :0], segments=segments[:, :0], n_segments=n)
    assert (total.tolist(), count.tolist()) == ([0.0] * n, [0] * n)


@WAYS
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"n_segments": None}, ConfigError),
        ({"segments": None}, ConfigError),
        ({"n_segments": -1}, ConfigError),
        ({"segments": torch.zeros(2, 8, dtype=torch.int64)}, DataError),
        ({"segments": torch.zeros(2, 9)}, DataError),
        ({"segments": torch.zeros(2, 9, dtype=torch.bool)}, DataError),
        ({"segments": torch.zeros(2, 9, dtype=torch.int64, device="meta")}, DataError),
    ],
)
def test_segments_that_do_not_fit_are_refused(way, wrong, error):
    hidden, weight, labels, segments = case()
    with pytest.raises(error, match="segments"):
        way(hidden, weight, labels, **{"segments": segments, "n_segments": 4, **wrong})
