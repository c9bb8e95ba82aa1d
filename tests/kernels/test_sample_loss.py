"""sample_loss against float64, and its memory."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from asepsis.errors import DataError
from asepsis.kernels import sample_loss

module = sys.modules["asepsis.kernels.sample_loss"]  # the package shows the function under this name

SHAPES = [(1, 2), (5, 2), (41, 401), (1, 1, 3), (3, 7, 11), (2, 41, 401)]


def case(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * 6).to(dtype)
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    if len(shape) == 3:
        labels[torch.rand(labels.shape, generator=generator) < 0.4] = -100
    return logits, labels


def exact(logits, labels, ignore_index=-100):
    counted = labels != ignore_index
    chosen = logits.double().log_softmax(-1).gather(-1, labels.where(counted, 0).unsqueeze(-1)).squeeze(-1)
    return -(chosen * counted).reshape(len(labels), -1).sum(1), counted.reshape(len(labels), -1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_total_and_count_are_the_formulas(shape, dtype):
    logits, labels = case(shape, dtype)
    total, count = sample_loss(logits, labels)
    wanted, n = exact(logits, labels)
    assert total.dtype == torch.float32
    assert count.dtype == torch.int64
    assert total.shape == count.shape == (shape[0],)
    assert torch.equal(count, n)
    torch.testing.assert_close(total, wanted.float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_softmax_minus_one_hot_where_counted(shape):
    logits, labels = case(shape)
    logits.requires_grad_()
    total, _ = sample_loss(logits, labels)
    weights = torch.arange(1, shape[0] + 1, dtype=torch.float32)
    (total * weights).sum().backward()
    counted = (labels != -100).unsqueeze(-1)
    one_hot = F.one_hot(labels.clamp(min=0), shape[-1])
    wanted = (logits.detach().double().softmax(-1) - one_hot) * counted
    wanted = wanted * weights.view(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(logits.grad, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 7 * 11, 1 << 24])
def test_the_slice_size_changes_nothing_but_memory(elements, monkeypatch):
    logits, labels = case((3, 7, 11))
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    total, _ = sample_loss(logits, labels)
    torch.testing.assert_close(total, exact(logits, labels)[0].float())


def test_small_losses_survive_half_precision_logits():
    logits = torch.tensor([[12.0, 0.0], [14.0, 0.0]], dtype=torch.bfloat16)
    total, _ = sample_loss(logits, torch.tensor([0, 0]))
    torch.testing.assert_close(total, torch.tensor([6.144193e-06, 8.315287e-07]), rtol=1e-2, atol=0)


def test_a_row_without_a_counted_position_is_zero_of_zero_and_moves_nothing():
    logits, labels = case((2, 3, 4))
    labels[0] = -100
    logits.requires_grad_()
    total, count = sample_loss(logits, labels)
    total.sum().backward()
    assert (total[0].item(), count[0].item()) == (0.0, 0)
    assert torch.count_nonzero(logits.grad[0]) == 0
    empty = sample_loss(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    assert [t.tolist() for t in empty] == [[0.0, 0.0], [0, 0]]


def test_another_ignore_index_is_heeded():
    logits, labels = case((3, 4))
    labels[:] = torch.tensor([1, 0, 2])
    total, count = sample_loss(logits, labels, ignore_index=0)
    assert count.tolist() == [1, 0, 1]
    assert total[1] == 0


def test_without_gradients_no_whole_float32_copy_is_made(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 2 * 1000)
    logits, labels = torch.zeros(2, 64, 1000, dtype=torch.bfloat16), torch.zeros(2, 64, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        sample_loss(logits, labels)
    allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
    assert max(allocated) < logits.numel() * 4 / 8


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(2)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_shapes_and_dtypes_outside_the_contract_are_refused(logits, labels):
    with pytest.raises(DataError):
        sample_loss(logits, labels)
