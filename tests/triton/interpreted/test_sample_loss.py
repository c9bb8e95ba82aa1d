"""The Triton path of linear_sample_loss against float64, forward and backward, and what only it could get wrong."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from asepsis.errors import BackendError
from asepsis.kernels import linear_sample_loss
from asepsis.kernels._triton import sample_loss as twin

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 70, 64, 300), (3, 37, 45, 131), (5, 16, 2), (1, 1, 1, 1), (2, 3, 128, 257)]


def case(shape, dtype, *, bias=True, ignored=0.4):
    generator = torch.Generator().manual_seed(0)
    *places, width, n_classes = shape
    hidden = torch.randn(*places, width, generator=generator).to(dtype)
    weight = (torch.randn(n_classes, width, generator=generator) * 3 / width**0.5).to(dtype)
    offset = torch.randn(n_classes, generator=generator).to(dtype) if bias else None
    labels = torch.randint(n_classes, places, generator=generator)
    labels[torch.rand(places, generator=generator) < ignored] = -100
    return hidden, weight, offset, labels


def measure(hidden, weight, bias, labels, backend, frozen=False, fenced=lambda t: t):
    """Totals, counts and gradients; the exact ones for ``backend="exact"``."""
    if backend == "exact":
        hidden, weight, bias = (t if t is None else t.double() for t in (hidden, weight, bias))
    hidden, weight, bias = (t if t is None else fenced(t.detach().clone()) for t in (hidden, weight, bias))
    hidden.requires_grad_()
    for tensor in () if frozen else (weight, bias):
        if tensor is not None:
            tensor.requires_grad_()
    if backend == "exact":
        logits = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
        counted = labels != -100
        chosen = logits.gather(-1, labels.where(counted, 0).unsqueeze(-1)).squeeze(-1)
        total, count = (
            -(chosen * counted).reshape(len(labels), -1).sum(1),
            counted.reshape(len(labels), -1).sum(1),
        )
    else:
        total, count = linear_sample_loss(hidden, weight, fenced(labels), bias=bias, backend=backend)
    weights = torch.linspace(-1, 2, len(labels), dtype=torch.float64).to(total.dtype)
    (total * weights).sum().backward()
    return count, total.detach(), *(None if t is None else t.grad for t in (hidden, weight, bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_at_most_twice_as_far_from_exact_as_the_references(
    shape, dtype, bias, fenced, fenced_outputs
):
    inputs = case(shape, dtype, bias=bias)
    got = measure(*inputs, "triton", fenced=fenced)
    usual, exact = (measure(*inputs, backend) for backend in ("reference", "exact"))
    assert torch.equal(got[0], exact[0])
    assert got[1].dtype == torch.float32
    for value, other, want in zip(got[1:], usual[1:], exact[1:], strict=True):
        if want is None:
            assert value is None
            continue
        assert value.dtype == other.dtype
        assert (value - want).norm() <= 2 * (other - want).norm() + 3e-7 * want.norm() + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_parts_and_chunks_than_one_change_nothing(dtype, monkeypatch):
    inputs = case((1, 300, 64, 600), dtype)
    whole = measure(*inputs, "triton")
    kind = "32 bit" if dtype == torch.float32 else "16 bit"
    tile = twin._TILES[kind, 90]
    monkeypatch.setitem(twin._TILES, (kind, 90), dataclasses.replace(tile, parts=1))
    monkeypatch.setattr(twin, "_BUFFER", tile.m * 640 * dtype.itemsize)
    cut = measure(*inputs, "triton")
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6 if dtype == torch.float32 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_packed_samples_and_their_gradients_are_as_close_to_exact(dtype, fenced, fenced_outputs):
    hidden, weight, bias, labels = case((3, 37, 45, 131), dtype)
    # three rows, five samples: one across rows, one empty, positions of none
    segments = torch.arange(111).div(23, rounding_mode="floor").view(3, 37).where(labels != 7, -1)
    segments[segments == 3] = 5
    found = {}
    for way, kind in (("triton", dtype), ("reference", dtype), ("exact", torch.float64)):
        leaves = [t.detach().to(kind, copy=True).requires_grad_() for t in (hidden, weight, bias)]
        if way == "exact":
            losses = torch.nn.functional.cross_entropy(
                torch.nn.functional.linear(*leaves).flatten(0, 1), labels.flatten(), reduction="none"
            )
            total = torch.stack([losses[segments.flatten() == i].sum() for i in range(6)])
        else:
            fences = [fenced(t.detach()).requires_grad_() for t in leaves] if way == "triton" else leaves
            leaves = fences
            total, count = linear_sample_loss(
                *leaves[:2], labels, bias=leaves[2], segments=segments, n_segments=6, backend=way
            )
            wanted = [((segments == i) & (labels != -100)).sum().item() for i in range(6)]
            assert count.tolist() == wanted and count[3] == 0 and total[3] == 0
        (total * torch.linspace(-1, 2, 6, dtype=torch.float64).to(total.dtype)).sum().backward()
        found[way] = [total.detach(), *(t.grad for t in leaves)]
    for got, usual, exact in zip(found["triton"], found["reference"], found["exact"], strict=True):
        assert (got - exact).norm() <= 2 * (usual - exact).norm() + 3e-7 * exact.norm()


def test_equal_inputs_give_equal_bits():
    inputs = case((2, 70, 64, 300), torch.bfloat16)
    for one, other in zip(measure(*inputs, "triton"), measure(*inputs, "triton"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(2, 9, 64, 40), (4, 64, 40)])
def test_samples_without_a_counted_position_are_zero_of_zero_and_move_nothing(shape):
    hidden, weight, bias, labels = case(shape, torch.float32, ignored=0)
    labels[0] = -100
    count, total, of_hidden, of_weight, _ = measure(hidden, weight, bias, labels, "triton")
    assert (count[0].item(), total[0].item()) == (0, 0.0)
    assert torch.count_nonzero(of_hidden[0]) == 0
    assert torch.count_nonzero(of_weight) > 0
    labels[:] = -100
    assert all(torch.count_nonzero(t) == 0 for t in measure(hidden, weight, bias, labels, "triton"))


def test_no_position_at_all_is_zero_of_zero():
    hidden, weight = torch.zeros(2, 0, 64, requires_grad=True), torch.zeros(5, 64, requires_grad=True)
    total, count = linear_sample_loss(hidden, weight, torch.zeros(2, 0, dtype=torch.int64), backend="triton")
    total.sum().backward()
    assert (total.tolist(), count.tolist()) == ([0.0, 0.0], [0, 0])
    assert torch.count_nonzero(weight.grad) == 0


def test_what_stands_at_ignored_positions_does_not_matter():
    hidden, weight, bias, labels = case((2, 40, 64, 50), torch.float32)
    labels[0, 0] = -100
    clean = measure(hidden, weight, bias, labels, "triton")
    hidden[labels == -100] = math.nan
    for one, other in zip(clean, measure(hidden, weight, bias, labels, "triton"), strict=True):
        assert torch.equal(one, other)


def test_a_label_outside_the_vocabulary_is_no_quiet_number():
    hidden, weight, bias, labels = case((3, 64, 5), torch.float32, ignored=0)
    labels[:] = torch.tensor([5, -1, 4])
    total, _ = linear_sample_loss(hidden, weight, labels, bias=bias, backend="triton")
    assert total.isnan().tolist() == [True, True, False]


def test_a_state_of_nan_spoils_its_own_sample_alone():
    hidden, weight, bias, labels = case((2, 5, 64, 9), torch.float32, ignored=0)
    hidden[0, 2, 3] = math.nan
    total, _ = linear_sample_loss(hidden, weight, labels, bias=bias, backend="triton")
    assert total.isnan().tolist() == [True, False]


def test_huge_and_impossible_logits_and_small_losses_come_out_as_in_torch():
    # rows of logits, made by the identity: [1e4, 0], one class masked out, and losses of about 1e-6
    hidden = torch.tensor([[1e4, 0.0], [0.0, 1e4], [14.0, 0.0], [12.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 0])
    total, _ = linear_sample_loss(hidden, torch.eye(2), labels, backend="triton")
    torch.testing.assert_close(total, torch.tensor([0.0, 1e4, 8.315287e-07, 6.144193e-06]), rtol=2e-2, atol=0)
    masked = torch.tensor([0.0, -math.inf])
    total, _ = linear_sample_loss(hidden, torch.eye(2), labels, bias=masked, backend="triton")
    assert total.tolist() == [0.0] * 4
    total, _ = linear_sample_loss(hidden, torch.eye(2), labels + 1, bias=masked, backend="triton")
    assert total.tolist() == [math.inf] * 4


def test_a_vocabulary_masked_out_tile_by_tile_is_still_summed():
    hidden, weight, _, labels = case((3, 64, 600), torch.float32, ignored=0)
    bias = torch.full((600,), -math.inf)
    bias[500:] = 0
    labels[:] = torch.tensor([500, 555, 599])
    got, want = (
        linear_sample_loss(hidden, weight, labels, bias=bias, backend=b)[0] for b in ("triton", "reference")
    )
    torch.testing.assert_close(got, want)


def launches(monkeypatch):
    seen = []
    true_run = InterpretedFunction.run
    monkeypatch.setattr(
        InterpretedFunction,
        "run",
        lambda self, *a, **k: (seen.append(self.fn.__name__), true_run(self, *a, **k)),
    )
    return seen


def test_what_is_frozen_costs_nothing(monkeypatch):
    seen = launches(monkeypatch)
    inputs = case((2, 4, 64, 30), torch.float32)
    frozen, trained = measure(*inputs, "triton", frozen=True), measure(*inputs, "triton")
    assert seen[:4] == ["_forward", "_combine", "_grad_logits", "_grad_hidden"]
    assert seen[4:] == [*seen[:4], "_grad_weight", "_grad_bias"]
    assert torch.equal(frozen[2], trained[2])
    assert frozen[3:] == (None, None)


def test_the_logits_are_never_there(monkeypatch):
    made = []
    for name in ("empty", "zeros", "full"):
        true_make = getattr(torch, name)
        monkeypatch.setattr(
            torch,
            name,
            lambda *a, _make=true_make, **k: (lambda t: (made.append(t.numel()), t)[1])(_make(*a, **k)),
        )
    hidden, weight, _, labels = case((1, 64, 64, 4000), torch.bfloat16)
    linear_sample_loss(hidden, weight, labels, backend="triton")
    assert 0 < max(made) < 64 * 4000 / 100


def test_autocast_is_heeded_and_gradients_come_in_the_parameters_dtype():
    hidden, weight, bias, labels = case((2, 9, 64, 40), torch.float32)
    rounded = linear_sample_loss(
        hidden.bfloat16(), weight.bfloat16(), labels, bias=bias.bfloat16(), backend="triton"
    )
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_sample_loss(hidden, weight, labels, bias=bias, backend="triton")
    assert torch.equal(total, rounded[0])
    total.sum().backward()
    assert {t.grad.dtype for t in (hidden, weight, bias)} == {torch.float32}


def test_auto_does_not_interpret_kernels_on_a_cpu_and_float64_is_refused(monkeypatch):
    seen = launches(monkeypatch)
    hidden, weight, bias, labels = case((3, 64, 5), torch.bfloat16)
    linear_sample_loss(hidden, weight, labels, bias=bias)
    assert not seen
    with pytest.raises(BackendError, match="float64"):
        linear_sample_loss(hidden.double(), weight.double(), labels, backend="triton")


def test_the_operators_are_registered_as_what_they_are():
    hidden, weight, bias, labels = case((3, 64, 5), torch.float32)
    for tensor in (hidden, weight, bias):
        tensor.requires_grad_()
    torch.library.opcheck(
        torch.ops.asepsis.linear_sample_loss.default,
        (hidden, weight, bias, labels, -100),
        atol=1e-5,
        rtol=1e-5,
    )
    _, norms = torch.ops.asepsis.linear_sample_loss(hidden.detach(), weight.detach(), None, labels, -100)
    arguments = (
        torch.ones(3),
        hidden.detach(),
        weight.detach(),
        None,
        labels,
        norms,
        -100,
        [True, True, False],
    )
    torch.library.opcheck(torch.ops.asepsis.linear_sample_loss_backward.default, arguments)
