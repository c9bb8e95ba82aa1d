"""grouped_lora is multiscale_lora layer by layer, on one input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from asepsis.errors import BackendError, ConfigError, DataError
from asepsis.kernels import GroupedLayer, grouped_lora, multiscale_lora

SHAPES = [(12, 4), (20, 3), (8, 1)]  # out features and rank of each layer
FIELDS = ("lora_a", "lora_b", "base_output")


def case(lead=(7,), inputs=24, shapes=SHAPES, dtype=torch.float64, *, factors=None, bias=True, bases=False):
    generator = torch.Generator().manual_seed(len(shapes) + inputs)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x = draw(*lead, inputs).to(dtype).requires_grad_()
    layers = []
    for outputs, rank in shapes:
        weight, offset = draw(outputs, inputs).to(dtype) / inputs**0.5, draw(outputs).to(dtype)
        base = F.linear(x.detach(), weight, offset).requires_grad_() if bases else None
        made = GroupedLayer(
            weight=None if bases else weight,
            bias=None if bases or not bias else offset,
            lora_a=(draw(rank, inputs) / inputs**0.5).to(factors or dtype).requires_grad_(),
            lora_b=(draw(outputs, rank) / rank**0.5).to(factors or dtype).requires_grad_(),
            scale=torch.rand(rank, generator=generator) + 0.5,
            base_output=base,
        )
        layers.append(made)
    return x, layers


def alone(x, layers):
    return [
        multiscale_lora(
            x,
            one.weight,
            one.bias,
            one.lora_a,
            one.lora_b,
            one.scale,
            base_output=one.base_output,
            backend="reference",
        )
        for one in layers
    ]


def leaves(x, layers):
    found = [getattr(one, field) for field in FIELDS for one in layers]
    return [x, *(t for t in found if t is not None)]


def gradients(outs, inputs, *, allow_unused=False):
    generator = torch.Generator().manual_seed(3)
    upstream = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outs
    ]
    return torch.autograd.grad(outs, inputs, upstream, allow_unused=allow_unused)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bases", [True, False])
@pytest.mark.parametrize("lead", [(7,), (2, 5), (), (0,), (2, 0)])
def test_outputs_and_gradients_are_those_of_the_layers_one_by_one(lead, bases, bias, nan_filled_empty):
    x, layers = case(lead, bases=bases, bias=bias)
    got, wanted = grouped_lora(x, layers), alone(x, layers)
    assert [out.shape for out in got] == [(*lead, outputs) for outputs, _ in SHAPES]
    inputs = leaves(x, layers)
    for one, other in zip(
        (*got, *gradients(got, inputs)), (*wanted, *gradients(wanted, inputs)), strict=True
    ):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


def test_one_layer_is_a_group():
    x, layers = case(shapes=[(5, 2)])
    (out,) = grouped_lora(x, layers)
    torch.testing.assert_close(out, alone(x, layers)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_factors_of_16_bit_layers_keep_float32_gradients(dtype):
    x, layers = case(dtype=dtype, factors=torch.float32)
    got, wanted = (gradients(outs, leaves(x, layers)) for outs in (grouped_lora(x, layers), alone(x, layers)))
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)
    assert {g.dtype for g in got[1:]} == {torch.float32}


@pytest.mark.parametrize("inside", [False, True])
def test_under_autocast_outputs_are_16_bit_and_factors_gradients_not_rounded(inside):
    x, layers = case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outs = grouped_lora(x, layers)
        found = gradients(outs, leaves(x, layers)) if inside else None
    found = found or gradients(outs, leaves(x, layers))
    assert {out.dtype for out in outs} == {torch.bfloat16}
    wanted = gradients(alone(x, layers), leaves(x, layers))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() < 2e-2 * other.norm()


def test_an_output_that_is_not_used_costs_the_others_nothing():
    x, layers = case()
    inputs = leaves(x, layers)
    got = gradients(grouped_lora(x, layers)[::2], inputs, allow_unused=True)
    wanted = gradients(alone(x, layers)[::2], inputs, allow_unused=True)
    for one, other in zip(got, wanted, strict=True):
        if other is None:
            assert one is None or torch.count_nonzero(one) == 0
        else:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("needed", ["x", "lora_a", "lora_b"])
def test_gradients_are_made_only_where_they_are_needed(needed):
    x, layers = case()
    wanted = gradients(grouped_lora(x, layers), leaves(x, layers))
    x.requires_grad_(needed == "x")
    for one in layers:
        for field in ("lora_a", "lora_b"):
            getattr(one, field).requires_grad_(field == needed)
    wide = [t for t in leaves(x, layers) if t.requires_grad]
    start = {"x": 0, "lora_a": 1, "lora_b": 4}[needed]
    got = gradients(grouped_lora(x, layers), wide)
    for one, other in zip(got, wanted[start : start + len(wide)], strict=True):
        assert torch.equal(one, other)


def test_gradcheck():
    x, layers = case((2,), 4, [(3, 2), (2, 1)])

    def run(x, *factors):
        return grouped_lora(
            x,
            [
                dataclasses.replace(one, lora_a=a, lora_b=b)
                for one, a, b in zip(layers, factors[:2], factors[2:], strict=True)
            ],
        )

    assert torch.autograd.gradcheck(run, tuple(leaves(x, layers)))


class Products(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_x_is_read_once_for_all_that_is_narrow_and_dx_is_made_once():
    x, layers = case(dtype=torch.float32)
    counted = {}
    for name, run in (("grouped", lambda: grouped_lora(x, layers)), ("alone", lambda: alone(x, layers))):
        with Products() as seen:
            outs = run()
            torch.autograd.grad(sum(out.sum() for out in outs), leaves(x, layers))
        counted[name] = sum("mm" in op for op in seen.names)
    # alone 3 + 5 a layer; grouped: x A^T, p A and p^T x once for all three
    assert counted == {"alone": 24, "grouped": 18}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"weight": torch.zeros(12, 23, dtype=torch.float64)}, DataError),
        ({"lora_a": torch.zeros(4, 25, dtype=torch.float64)}, DataError),
        ({"scale": torch.ones(3)}, DataError),
        ({"weight": None, "bias": None}, ConfigError),
        ({"weight": None, "bias": None, "base_output": torch.zeros(7, 12, dtype=torch.float64)}, ConfigError),
        ({"weight": torch.zeros(12, 24, dtype=torch.float64, requires_grad=True)}, ConfigError),
    ],
    ids=["weight", "factor", "scale", "no base", "two kinds", "trained base"],
)
def test_a_layer_that_does_not_fit_is_refused(change, error):
    x, layers = case()
    with pytest.raises(error):
        grouped_lora(x, [dataclasses.replace(layers[0], **change), *layers[1:]])


def test_no_layer_and_no_such_backend_are_refused():
    x, layers = case()
    with pytest.raises(ConfigError, match="at least one layer"):
        grouped_lora(x, [])
    with pytest.raises(BackendError, match="NVIDIA GPU"):
        grouped_lora(x, layers, backend="triton")
