"""linear_sample_loss against sample_loss of the logits it does not make."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from asepsis.errors import BackendError, DataError
from asepsis.kernels import linear_sample_loss, sample_loss

module = sys.modules["asepsis.kernels.sample_loss"]  # the package shows the function under this name

SHAPES = [(5, 16, 2), (2, 7, 12, 31), (1, 1, 1, 1)]


def case(shape, dtype=torch.float32, *, bias=True):
    generator = torch.Generator().manual_seed(0)
    *places, width, n_classes = shape
    hidden = torch.randn(*places, width, generator=generator).to(dtype)
    weight = torch.randn(n_classes, width, generator=generator).to(dtype)
    offset = torch.randn(n_classes, generator=generator).to(dtype) if bias else None
    labels = torch.randint(n_classes, places, generator=generator)
    labels[torch.rand(places, generator=generator) < 0.3] = -100
    return hidden, weight, offset, labels


def measure(hidden, weight, bias, labels, *, lean):
    inputs = [t for t in (hidden, weight, bias) if t is not None]
    for tensor in inputs:
        tensor.requires_grad_()
        tensor.grad = None
    if lean:
        total, count = linear_sample_loss(hidden, weight, labels, bias=bias)
    else:
        total, count = sample_loss(F.linear(hidden, weight, bias), labels)
    (total * torch.arange(1, len(labels) + 1)).sum().backward()
    return total.detach(), count, *(t.grad for t in inputs)


@pytest.mark.parametrize("elements", [1, 31 * 3, 1 << 24])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_counts_and_gradients_are_those_of_the_logits(shape, bias, elements, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    inputs = case(shape, bias=bias)
    for got, want in zip(measure(*inputs, lean=True), measure(*inputs, lean=False), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_come_out_as_through_the_logits(dtype):
    inputs = case((2, 7, 12, 31), dtype)
    for got, want in zip(measure(*inputs, lean=True), measure(*inputs, lean=False), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_under_autocast_the_numbers_are_those_of_the_logits_there():
    inputs = case((2, 7, 12, 31))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = measure(*inputs, lean=True), measure(*inputs, lean=False)
    assert torch.equal(got[0], want[0])
    for one, other in zip(got[2:], want[2:], strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_a_frozen_layer_gets_no_gradient_and_changes_none():
    hidden, weight, bias, labels = case((2, 7, 12, 31))
    want = measure(hidden, weight, bias, labels, lean=True)[2]
    fresh = hidden.detach().clone().requires_grad_()
    total, _ = linear_sample_loss(fresh, weight.detach(), labels, bias=bias.detach())
    (total * torch.arange(1, 3)).sum().backward()
    assert torch.equal(fresh.grad, want)


def test_views_that_are_not_contiguous_are_read_as_they_stand():
    hidden, weight, bias, labels = case((2, 7, 12, 31))
    want = linear_sample_loss(hidden[:, :-1].contiguous(), weight, labels[:, 1:].contiguous(), bias=bias)
    got = linear_sample_loss(hidden[:, :-1], weight.T.contiguous().T, labels[:, 1:], bias=bias)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_rows_without_a_label_and_no_rows_at_all_are_zero():
    hidden, weight, bias, labels = case((2, 7, 12, 31))
    labels[0] = -100
    total, count, of_hidden, *_ = measure(hidden, weight, bias, labels, lean=True)
    assert (total[0].item(), count[0].item()) == (0.0, 0)
    assert torch.count_nonzero(of_hidden[0]) == 0
    empty = linear_sample_loss(hidden[:, :0], weight, labels[:, :0], bias=bias)
    assert [t.tolist() for t in empty] == [[0.0, 0.0], [0, 0]]


def test_no_more_than_a_chunk_of_logits_is_held_forward_and_backward(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 4 * 1000)
    hidden, weight, _, labels = case((2, 128, 8, 1000))
    hidden.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_sample_loss(hidden, weight, labels)[0].sum().backward()
    allocated = [event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0]
    assert max(allocated) < 2 * 128 * 1000 * 4 / 8


def test_triton_says_what_it_lacks():
    hidden, weight, bias, labels = case((5, 16, 2))
    with pytest.raises(BackendError, match="tensors are on cpu, it needs an NVIDIA GPU"):
        linear_sample_loss(hidden, weight, labels, bias=bias, backend="triton")


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": torch.zeros(2, 3, 5)},
        {"hidden": torch.zeros(4)},
        {"hidden": torch.zeros(2, 3, 4, dtype=torch.float64)},
        {"hidden": torch.zeros(2, 3, 4, dtype=torch.int64)},
        {"weight": torch.zeros(6, 4, 1)},
        {"weight": torch.zeros(0, 4)},
        {"weight": torch.zeros(6, 4, device="meta")},
        {"labels": torch.zeros(2, dtype=torch.int64)},
        {"labels": torch.zeros(2, 3)},
        {"labels": torch.zeros(2, 3, dtype=torch.bool)},
        {"bias": torch.zeros(4)},
        {"bias": torch.zeros(6, dtype=torch.float16)},
    ],
    ids=str,
)
def test_tensors_that_do_not_go_together_are_refused(wrong):
    right = {"hidden": torch.zeros(2, 3, 4), "weight": torch.zeros(6, 4), "bias": torch.zeros(6)}
    given = {**right, "labels": torch.zeros(2, 3, dtype=torch.int64), **wrong}
    with pytest.raises(DataError):
        linear_sample_loss(**given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_nothing_waits_and_the_result_is_the_references(dtype):
    inputs = [t.cuda() for t in case((3, 200, 128, 3001), dtype)]

    def run(backend):
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
        hidden, weight, bias, labels = leaves
        total, _ = linear_sample_loss(hidden, weight, labels, bias=bias, backend=backend)
        total.sum().backward()
        return total.detach(), *(t.grad for t in leaves[:3])

    want, got = run("reference"), run("triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run("triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, two, other in zip(got, again, want, strict=True):
        assert torch.equal(one, two)
        assert (one - other).norm() <= tolerance * other.norm()
