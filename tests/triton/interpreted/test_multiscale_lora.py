"""The Triton path of multiscale_lora against float64, held to twice the error torch makes in the same dtype."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from asepsis.errors import BackendError
from asepsis.kernels import SetAside, _dispatch, _dropout, multiscale_lora
from asepsis.kernels._triton import _lora_products as products
from asepsis.kernels._triton import _routes
from asepsis.kernels._triton import multiscale_lora as twin

FLOOR = {torch.float32: 1e-5, torch.bfloat16: 2**-9, torch.float16: 2**-12}  # as for the reference
ROUTES = ("fused", "accumulate")


@pytest.fixture
def route(monkeypatch):
    """``route("fused")`` makes both directions go that way, whatever the shape."""

    def choose(way: str) -> None:
        monkeypatch.setattr(_routes, "plan", lambda _: _routes.Plan(way, way, "modelled"))

    return choose


def case(m, k, n, r, dtype=torch.float32, *, factors=torch.float32, bias=True, lead=()):
    generator = torch.Generator().manual_seed(m + 31 * k + 7 * n + r)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return {
        "x": draw(*lead, m, k).to(dtype).requires_grad_(),
        "weight": (draw(n, k) / k**0.5).to(dtype),
        "bias": draw(n).to(dtype) if bias else None,
        "lora_a": (draw(r, k) / k**0.5).to(factors).requires_grad_(),
        "lora_b": (draw(n, r) / r**0.5).to(factors).requires_grad_(),
        "scale": torch.rand(r, generator=generator) + 0.5,
    }


def fence(c, fenced):
    return {name: None if t is None else like(fenced(t.detach()), t) for name, t in c.items()}


def like(copy, original):
    return copy.requires_grad_(original.requires_grad)


def upstream(out):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return values.to(torch.bfloat16).to(out.dtype)


def results(c, *, backend, dropout=0.0, seed=None, aside=None):
    out = multiscale_lora(**c, backend=backend, dropout=dropout, seed=seed, set_aside=aside)
    out.backward(upstream(out))
    return {"y": out.detach(), "dx": c["x"].grad, "da": c["lora_a"].grad, "db": c["lora_b"].grad}


def fresh(c, dtype=None):
    return {
        name: None
        if t is None
        else t.detach()
        .to(t.dtype if dtype is None or name == "scale" else dtype)
        .requires_grad_(t.requires_grad)
        for name, t in c.items()
    }


def exact(c, dropout=0.0, seed=None):
    """The contract in float64, with the mask of the seed."""
    c = {
        name: None if t is None else t.detach().double().requires_grad_(t.requires_grad)
        for name, t in c.items()
    }
    x = c["x"]
    kept = torch.ones((), dtype=torch.float64)
    if dropout:
        kept = _dropout.keep(seed, x.numel() // x.shape[-1], x.shape[-1], dropout).double().view(x.shape)
        kept = kept * _dropout.inverse(dropout)
    out = F.linear(x, c["weight"], c["bias"]) + ((x * kept) @ c["lora_a"].t() * c["scale"]) @ c["lora_b"].t()
    out.backward(upstream(out.float()).double())
    return {"y": out.detach(), "dx": x.grad, "da": c["lora_a"].grad, "db": c["lora_b"].grad}


def assert_as_accurate(got, peer, wanted, dtype):
    for name, truth in wanted.items():
        error, own = (got[name].double() - truth).norm(), (peer[name].double() - truth).norm()
        allowed = 2 * own + FLOOR[dtype] * truth.norm()
        assert error <= allowed, (name, error.item(), allowed.item())


def compare(c, dtype, fenced, **more):
    got = results(fence(c, fenced), backend="triton", **more)
    peer = results(fresh(c), backend="reference", **more)
    for name in ("da", "db"):
        assert got[name].dtype == peer[name].dtype
    assert_as_accurate(got, peer, exact(c, more.get("dropout", 0.0), more.get("seed")), dtype)


@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "k", "n", "r"),
    [(70, 96, 50, 3), (33, 41, 131, 80), (129, 64, 64, 16)],
    ids=lambda v: str(v),
)
def test_output_and_gradients_are_as_close_to_float64_as_torchs(
    m, k, n, r, dtype, way, route, fenced, fenced_outputs
):
    route(way)
    compare(case(m, k, n, r, dtype), dtype, fenced)


@pytest.mark.parametrize("way", ROUTES)
def test_one_row_and_rank_one(way, route, fenced, fenced_outputs):
    # in float32: of single numbers rounded to 16 bits torch's may happen to be exact
    route(way)
    compare(case(1, 7, 5, 1), torch.float32, fenced)


@pytest.mark.parametrize("r", [1, 4, 100, 128, 144])
def test_no_rank_has_to_be_a_power_of_two(r, route, fenced, fenced_outputs):
    route("fused")
    compare(case(40, 72, 56, r, torch.bfloat16), torch.bfloat16, fenced)


@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_without_bias_and_with_factors_of_either_dtype(factors, way, route, fenced, fenced_outputs):
    route(way)
    c = case(20, 40, 24, 5, torch.bfloat16, factors=factors, bias=False)
    compare(c, torch.bfloat16, fenced)


@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 41), (torch.bfloat16, 136)])
def test_the_mask_of_the_seed_is_the_references_forward_and_backward(
    dtype, k, way, route, fenced, fenced_outputs
):
    # float64 with the reference's mask: one element dropped elsewhere and the error would be of the size of y
    route(way)
    compare(case(70, k, 50, 20, dtype), dtype, fenced, dropout=0.3, seed=torch.tensor(2**40 + 12345))


def test_the_mask_is_one_function_of_place_whatever_the_tile(route):
    seed, mask = torch.tensor(99), products.Mask.of(torch.tensor(99), 0.5)
    wanted = _dropout.keep(seed, 70, 300, 0.5)
    ones = torch.ones(70, 300)
    # x = 1 and one factor row at a time reads the mask back: column k of the product is keep[:, k]
    eye = torch.eye(300)
    shrunk = products.shrink(ones, eye, torch.ones(300), mask, masked=True)[:, :300]
    spread = products.expand(
        ones[:, :16].contiguous(), torch.eye(300, 16), mask, torch.empty(70, 300), add=False
    )
    assert torch.equal(shrunk / mask.inverse > 0.5, wanted)
    assert torch.equal(spread[:, :16] > 0.5, wanted[:, :16])


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("boundary", [0, 1, 40, 77])
def test_rows_set_aside_have_their_own_gradients(boundary, with_mask, fenced, fenced_outputs):
    more = {"dropout": 0.25, "seed": torch.tensor(7)} if with_mask else {}
    c = case(77, 24, 20, 6)
    asides = [SetAside(boundary, torch.full((6, 24), 0.5), torch.full((20, 6), 0.5)) for _ in range(2)]
    got = results(fence(c, fenced), backend="triton", aside=asides[0], **more)
    peer = results(fresh(c), backend="reference", aside=asides[1], **more)
    for mine, theirs in zip(
        [*got.values(), asides[0].lora_a, asides[0].lora_b],
        [*peer.values(), asides[1].lora_a, asides[1].lora_b],
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_base_output_stands_for_the_weight_and_its_gradient_passes_through(
    with_mask, fenced, fenced_outputs
):
    more = {"dropout": 0.25, "seed": torch.tensor(7)} if with_mask else {}
    c = case(30, 24, 20, 6)
    peer = results(fresh(c), backend="triton", **more)
    d = fence(c, fenced)
    base = F.linear(d["x"], d["weight"], d["bias"])
    base.retain_grad()
    d |= {"weight": None, "bias": None, "base_output": base}
    got = results(d, backend="triton", **more)
    for mine, theirs in zip(got.values(), peer.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(base.grad, upstream(got["y"]))


@pytest.mark.parametrize("way", ROUTES)
def test_strides_change_nothing(way, route, fenced):
    route(way)
    c = case(12, 24, 20, 6)
    wanted = results(fresh(c), backend="triton")
    d = fresh(c)
    leaf = torch.zeros(24, 40)
    leaf[:, 3:15] = c["x"].detach().t()
    leaf = fenced(leaf).requires_grad_()
    d["x"] = leaf[:, 3:15].t()
    d["x"].retain_grad()
    d["weight"] = fenced(c["weight"].t().contiguous()).t()
    d["scale"] = fenced(torch.stack([c["scale"], c["scale"] * 0], 1))[:, 0]
    d["bias"] = fenced(torch.stack([c["bias"], c["bias"] * 0], 1))[:, 0]
    for mine, theirs in zip(results(d, backend="triton").values(), wanted.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_rows_with_a_stride_between_them_are_read_in_place(fenced, fenced_outputs):
    c = case(12, 24, 20, 6)
    wanted = results(fresh(c), backend="triton")
    wide = fenced(torch.full((12, 31), float("nan")))
    wide[:, :24] = c["x"].detach()
    d = fresh(c) | {"x": wide[:, :24].requires_grad_()}
    for mine, theirs in zip(results(d, backend="triton").values(), wanted.values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_gradient_that_is_one_number_for_all_rows_is_read_right():
    c, d = case(12, 24, 20, 6), case(12, 24, 20, 6)
    multiscale_lora(**c, backend="triton").sum().backward()
    multiscale_lora(**d, backend="reference").sum().backward()
    for name in ("x", "lora_a", "lora_b"):
        torch.testing.assert_close(c[name].grad, d[name].grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lead", [(0,), (2, 0), ()])
def test_no_row_at_all_and_leading_axes(lead, fenced_outputs):
    c = case(0 if lead == (0,) else 3, 24, 20, 6, lead=lead)
    got, peer = results(fresh(c), backend="triton"), results(fresh(c), backend="reference")
    for mine, theirs in zip(got.values(), peer.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", ["x", "lora_a", "lora_b"])
def test_gradients_are_made_only_where_they_are_needed(needed):
    c = case(12, 24, 20, 6)
    wanted = results(fresh(c), backend="triton")[{"x": "dx", "lora_a": "da", "lora_b": "db"}[needed]]
    d = {n: None if t is None else t.detach().requires_grad_(n == needed) for n, t in c.items()}
    results(d, backend="triton")
    assert torch.equal(d[needed].grad, wanted)
    assert all(t.grad is None for n, t in d.items() if n != needed)


def test_square_factors_are_not_taken_for_each_other():
    c = case(12, 8, 8, 8)
    compare_to = exact(c)
    got = results(fresh(c), backend="triton")
    for name, truth in compare_to.items():
        torch.testing.assert_close(got[name].double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank_first", [True, False])
@pytest.mark.parametrize("boundary", [None, 70])
def test_columns_are_taken_in_pieces_when_the_scratch_is_small(rank_first, boundary, fenced, fenced_outputs):
    x, p = fenced(torch.randn(200, 300)), torch.zeros(200, 16)
    p[:, :5] = torch.randn(200, 5)
    p = fenced(p)
    like_ = torch.empty(5, 300) if rank_first else torch.empty(300, 5)
    more = {"like": like_, "rank_first": rank_first, "boundary": boundary}
    whole = products.gradient(x, p, None, **more)
    pieces = products.gradient(x, p, None, **more, scratch=4 * 5 * 64)
    wanted = [x[:boundary].t() @ p[:boundary, :5]]
    if boundary is not None:
        wanted.append(x[boundary:].t() @ p[boundary:, :5])
    for a, b, truth in zip(whole, pieces, wanted, strict=True):
        truth = truth.t() if rank_first else truth
        torch.testing.assert_close(a, truth, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b, truth, rtol=1e-4, atol=1e-4)


def test_under_autocast_the_parameters_keep_float32_gradients():
    c = case(20, 40, 24, 5)
    d = fresh(c)
    for each, backend in ((c, "triton"), (d, "reference")):
        with torch.autocast("cpu", torch.bfloat16):
            out = multiscale_lora(**each, backend=backend)
            assert out.dtype == torch.bfloat16
            out.backward(upstream(out))
        assert each["lora_a"].grad.dtype == each["x"].grad.dtype == torch.float32
    for name in ("x", "lora_a", "lora_b"):
        mine, theirs = c[name].grad, d[name].grad
        assert (mine - theirs).norm() < 1e-2 * theirs.norm(), name


def test_equal_inputs_give_equal_bits():
    c = case(150, 40, 24, 5, torch.bfloat16)
    first, second = (results(fresh(c), backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpointing_draws_the_same_mask_again():
    c = case(20, 24, 24, 5)

    def layer(x, d):
        seed = torch.randint(2**62, ())
        return multiscale_lora(**{**d, "x": x}, backend="triton", dropout=0.5, seed=seed).tanh()

    found = []
    for wrapped in (False, True):
        d = fresh(c)
        torch.manual_seed(3)
        out = checkpoint(layer, d["x"], d, use_reentrant=False) if wrapped else layer(d["x"], d)
        out.backward(upstream(out))
        found.append([out, d["x"].grad, d["lora_a"].grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("way", ROUTES)
def test_the_operators_keep_the_rules_of_custom_operators(way, route):
    route(way)
    c = case(5, 8, 12, 3)
    seed = torch.tensor(3)
    inputs = (c["x"], None, c["lora_a"], c["lora_b"], c["weight"], c["bias"], c["scale"])
    for dropout in (0.0, 0.5):
        torch.library.opcheck(twin.forward, (*inputs, seed, dropout, None, None, -1))
    plain = [t.detach() for t in (c["x"], c["lora_a"], c["lora_b"], c["weight"], c["scale"])]
    p, grad = torch.zeros(5, 16), torch.randn(5, 12)
    for x, kept, boundary in ((plain[0], p, -1), (None, p, -1), (plain[0], None, 2), (plain[0], p, 2)):
        arguments = (grad, x, kept, plain[1], plain[2], plain[3], plain[4], None, 0.0)
        torch.library.opcheck(twin.backward, arguments, {"needs_x": x is not None, "boundary": boundary})


def test_a_compiled_layer_is_one_graph_with_the_same_results(monkeypatch):
    # on a GPU this is not asked while tracing; the interpreter's process has to
    monkeypatch.setattr(_dispatch, "_has_triton", lambda: True)
    c = case(20, 24, 24, 5)

    def layer(x, a, b):
        return multiscale_lora(x, c["weight"], c["bias"], a, b, c["scale"], backend="triton").tanh()

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = []
    for run in (layer, compiled):
        d = fresh(c)
        out = run(d["x"], d["lora_a"], d["lora_b"])
        out.backward(upstream(out))
        found.append([out, d["x"].grad, d["lora_a"].grad, d["lora_b"].grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["x", "lora_a", "weight"])
def test_float64_is_refused_with_the_way_out(name):
    c = case(5, 8, 12, 3)
    with pytest.raises(BackendError, match="float64"):
        multiscale_lora(**(c | {name: c[name].detach().double()}), backend="triton")


def test_auto_does_not_interpret_kernels_on_a_cpu(monkeypatch):
    def fail(*_):
        raise AssertionError("interpreted")

    monkeypatch.setattr(twin, "forward", fail)
    multiscale_lora(**case(5, 8, 12, 3))
