"""The Triton path of grouped_lora against float64, held to twice the error torch makes in the same dtype."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from triton.runtime.interpreter import InterpretedFunction

from asepsis.errors import BackendError
from asepsis.kernels import GroupedLayer, _dispatch, grouped_lora
from asepsis.kernels._triton import _routes
from asepsis.kernels._triton import grouped_lora as twin

FLOOR = {torch.float32: 1e-5, torch.bfloat16: 2**-9, torch.float16: 2**-12}
ROUTES = ("fused", "accumulate")


@pytest.fixture
def route(monkeypatch):
    def choose(way):
        monkeypatch.setattr(_routes, "plan", lambda _: _routes.Plan(way, way, "modelled"))

    return choose


def case(m, k, shapes, dtype, *, factors=torch.float32, bases=False):
    generator = torch.Generator().manual_seed(m + k)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, layers = draw(m, k).to(dtype).requires_grad_(), []
    for j, (n, r) in enumerate(shapes):
        base = {"base_output": draw(m, n).to(dtype).requires_grad_()}
        plain = {"weight": (draw(n, k) / k**0.5).to(dtype), "bias": draw(n).to(dtype) if j % 2 else None}
        layers.append(
            GroupedLayer(
                lora_a=(draw(r, k) / k**0.5).to(factors).requires_grad_(),
                lora_b=(draw(n, r) / r**0.5).to(factors).requires_grad_(),
                scale=torch.rand(r, generator=generator) + 0.5,
                **(base if bases else plain),
            )
        )
    return x, layers


def copied(x, layers, change):
    """The same with every tensor but the scales changed, leaves of their own."""

    def one(tensor, name):
        if tensor is None or name == "scale":
            return tensor
        return change(tensor.detach()).requires_grad_(tensor.requires_grad)

    fields = [f.name for f in dataclasses.fields(GroupedLayer)]
    return one(x, "x"), [GroupedLayer(**{f: one(getattr(layer, f), f) for f in fields}) for layer in layers]


def results(x, layers, backend, used=slice(None)):
    if backend == "exact":
        outs = []
        for one in layers:
            base = F.linear(x, one.weight, one.bias) if one.base_output is None else one.base_output
            outs.append(base + (x @ one.lora_a.t() * one.scale) @ one.lora_b.t())
    else:
        outs = list(grouped_lora(x, layers, backend=backend))
    leaves = [x, *(getattr(one, f) for f in ("lora_a", "lora_b", "base_output") for one in layers)]
    leaves = [leaf for leaf in leaves if leaf is not None]
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype) for out in outs]
    found = torch.autograd.grad(outs[used], leaves, upstream[used], allow_unused=True)
    return [*(out.detach() for out in outs), *found]


def compare(x, layers, dtype, fenced, **more):
    got = results(*copied(x, layers, fenced), "triton", **more)
    peer = results(*copied(x, layers, torch.clone), "reference", **more)
    exact = results(*copied(x, layers, torch.Tensor.double), "exact", **more)
    for one, own, truth in zip(got, peer, exact, strict=True):
        if truth is None:
            assert one is None or torch.count_nonzero(one) == 0
            continue
        assert one.dtype == own.dtype and one.shape == own.shape
        error, allowed = (one - truth).norm(), 2 * (own - truth).norm() + FLOOR[dtype] * truth.norm()
        assert error <= allowed, (error.item(), allowed.item())


@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_outputs_and_gradients_are_as_close_to_float64_as_torchs(way, dtype, route, fenced, fenced_outputs):
    route(way)
    compare(*case(37, 72, [(41, 16), (64, 3), (24, 80)], dtype), dtype, fenced)


def test_ranks_beyond_one_program_and_one_row(route, fenced, fenced_outputs):
    route("fused")
    compare(*case(1, 24, [(8, 80), (5, 100)], torch.float32), torch.float32, fenced)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_base_outputs_stand_for_weights_and_their_gradients_pass_through(factors, fenced, fenced_outputs):
    compare(
        *case(20, 24, [(16, 4), (9, 2)], torch.bfloat16, factors=factors, bases=True), torch.bfloat16, fenced
    )


def test_an_output_that_is_not_used_moves_nothing(fenced, fenced_outputs):
    compare(*case(20, 24, [(16, 4), (9, 2), (8, 1)], torch.float32), torch.float32, fenced, used=slice(0, 2))


@pytest.mark.parametrize("needed", ["x", "lora_a", "lora_b"])
def test_gradients_are_made_only_where_they_are_needed(needed):
    x, layers = case(20, 24, [(16, 4), (9, 2)], torch.float32)
    whole = results(*copied(x, layers, torch.clone), "triton")[2:]
    x, layers = copied(x, layers, torch.clone)
    x.requires_grad_(needed == "x")
    for one in layers:
        for field in ("lora_a", "lora_b"):
            getattr(one, field).requires_grad_(field == needed)
    leaves = [x] if needed == "x" else [getattr(one, needed) for one in layers]
    generator = torch.Generator().manual_seed(5)
    outs = grouped_lora(x, layers, backend="triton")
    upstream = [torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype) for out in outs]
    start = {"x": 0, "lora_a": 1, "lora_b": 3}[needed]
    for one, other in zip(torch.autograd.grad(outs, leaves, upstream), whole[start:], strict=False):
        assert torch.equal(one, other)


def test_x_is_read_by_one_narrow_launch_each_way(monkeypatch, route):
    route("accumulate")
    seen = []
    run = InterpretedFunction.run
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda self, *a, **k: (seen.append(self.fn.__name__), run(self, *a, **k))
    )
    results(*case(20, 24, [(16, 4), (9, 2), (8, 1)], torch.float32), "triton")
    narrow = [name.removeprefix("_multiscale_lora_").removesuffix("_kernel") for name in seen]
    # forward P of all; backward dP of each, dA of all, dB of each
    assert narrow == ["shrink", *["shrink"] * 3, "gradient", *["gradient"] * 3]


def test_equal_inputs_give_equal_bits():
    x, layers = case(150, 40, [(24, 5), (24, 5)], torch.bfloat16)
    first, second = (results(*copied(x, layers, torch.clone), "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_float64_is_refused():
    x, layers = case(5, 8, [(4, 2)], torch.float32)
    with pytest.raises(BackendError, match="float64"):
        grouped_lora(x.double(), layers, backend="triton")


@pytest.mark.parametrize("bases", [False, True])
def test_the_operators_keep_the_rules_of_custom_operators(bases):
    x, layers = case(5, 8, [(12, 3), (4, 1)], torch.float32, bases=bases)
    none = torch.empty(0)
    lists = (
        [one.base_output for one in layers] if bases else [],
        [one.lora_a for one in layers],
        [one.lora_b for one in layers],
        [] if bases else [one.weight for one in layers],
        [none if one.bias is None else one.bias for one in layers],
        [one.scale for one in layers],
    )
    torch.library.opcheck(twin.forward, (x, *lists))
    downs, ups, weights, _, scales = ([t.detach() for t in kind] for kind in lists[1:])
    grads = [torch.randn(5, 12), torch.randn(5, 4)]
    for given in ((x.detach(), torch.zeros(5, 32)), (None, torch.zeros(5, 32)), (x.detach(), None)):
        arguments = (grads, *given, downs, ups, weights, scales)
        torch.library.opcheck(twin.backward, arguments, {"needs_x": True})


def test_a_compiled_group_is_one_graph_with_the_same_results(monkeypatch):
    # on a GPU this is not asked while tracing; the interpreter's process has to
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: True)
    x, layers = case(20, 24, [(16, 4), (9, 2)], torch.float32)

    def group(x, a, b):
        given = [dataclasses.replace(one, lora_a=a[j], lora_b=b[j]) for j, one in enumerate(layers)]
        return torch.cat(grouped_lora(x, given, backend="triton"), 1).tanh()

    found = []
    for run in (group, torch.compile(group, backend="aot_eager", fullgraph=True)):
        again, own = copied(x, layers, torch.clone)
        leaves = [again, *(one.lora_a for one in own), *(one.lora_b for one in own)]
        out = run(again, [one.lora_a for one in own], [one.lora_b for one in own])
        found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
