"""multiscale_lora against a loop over scales in float64, under everything training does to a layer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from asepsis.errors import BackendError, ConfigError, DataError
from asepsis.kernels import SetAside, multiscale_lora

FLOOR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2**-9, torch.float16: 2**-12}
SHAPES = [  # x, O, scales, rows of each scale
    ((1, 5), 2, (1.0,), 1),
    ((7, 41), 16, (1.0, 2.0, 3.0, 4.0), 1),
    ((3, 11, 33), 16, (1.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0), 1),
    ((2, 19, 41), 401, (1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0), 1),
    ((5, 96), 80, tuple(map(float, range(1, 10))), 8),
    ((4, 5, 6, 7), 3, (2.0, 0.5), 2),
]


def case(shape, outputs, scales, rho, dtype=torch.float32, parameters=None):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    features, rank = shape[-1], rho * len(scales)
    parameters = dtype if parameters is None else parameters
    return {
        "x": draw(*shape).to(dtype).requires_grad_(),
        "weight": (draw(outputs, features) / features**0.5).to(parameters),
        "bias": draw(outputs).to(parameters),
        "lora_a": (draw(rank, features) / features**0.5).to(parameters).requires_grad_(),
        "lora_b": (draw(outputs, rank) / rank**0.5).to(parameters).requires_grad_(),
        "scale": torch.tensor(scales).repeat_interleave(rho) * 0.7,
    }


def loop(c, rho):
    """sum_s c k_s R_s (L_s x), one scale after the other, in the dtypes it is given."""
    out = F.linear(c["x"], c["weight"], c["bias"])
    for start in range(0, len(c["scale"]), rho):
        rows = slice(start, start + rho)
        out = out + c["scale"][start].to(out.dtype) * F.linear(
            F.linear(c["x"], c["lora_a"][rows]), c["lora_b"][:, rows]
        )
    return out


def cast(c, dtype):
    return {name: t.detach().to(dtype).requires_grad_(t.requires_grad) for name, t in c.items()}


def gradients(out, c, seed=1):
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out.backward(upstream.to(torch.bfloat16).to(out.dtype))  # the same numbers in every dtype
    return [out.detach(), c["x"].grad, c["lora_a"].grad, c["lora_b"].grad]


def assert_as_accurate(got, exact, naive, dtype):
    for name, g, e, n in zip(("y", "dx", "da", "db"), got, exact, naive, strict=True):
        error, allowed = (g.double() - e).norm(), 2 * (n.double() - e).norm() + FLOOR[dtype] * e.norm()
        assert error <= allowed, (name, error.item(), allowed.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("shape", "outputs", "scales", "rho"), SHAPES)
def test_output_and_gradients_are_those_of_the_loop_over_scales(
    shape, outputs, scales, rho, dtype, nan_filled_empty
):
    c = case(shape, outputs, scales, rho, dtype)
    got = gradients(multiscale_lora(**c), c)
    exact, naive = cast(c, torch.float64), cast(c, dtype)
    assert [t.dtype for t in got] == [dtype] * 4
    assert got[0].shape == (*shape[:-1], outputs)
    assert_as_accurate(got, gradients(loop(exact, rho), exact), gradients(loop(naive, rho), naive), dtype)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("shape", "outputs", "scales", "rho"), SHAPES)
def test_under_autocast_the_parameters_keep_float32_gradients(shape, outputs, scales, rho, inside):
    c, naive = case(shape, outputs, scales, rho), case(shape, outputs, scales, rho)
    with torch.autocast("cpu", torch.bfloat16):
        y, peer = multiscale_lora(**c), loop(naive, rho)
        if inside:  # and so with backward called inside the region
            got = gradients(y, c)
    got = got if inside else gradients(y, c)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    exact = cast(c, torch.float64)
    assert_as_accurate(got, gradients(loop(exact, rho), exact), gradients(peer, naive), torch.bfloat16)


@pytest.mark.parametrize("inside", [False, True])
def test_weight_gradients_are_not_rounded_to_the_compute_dtype(inside):
    # x, g, A and B are exact in bf16 and the sums small integers beyond its 8 bits
    x = torch.ones(257, 4, requires_grad=True)
    a, b = torch.ones(1, 4, requires_grad=True), torch.ones(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = multiscale_lora(x, torch.zeros(2, 4), None, a, b, torch.ones(1))
        if inside:
            out.backward(torch.ones_like(out))
    if not inside:
        out.backward(torch.ones_like(out))
    assert torch.equal(a.grad, torch.full((1, 4), 514.0))
    assert torch.equal(b.grad, torch.full((2, 1), 1028.0))
    assert torch.tensor([514.0, 1028.0]).bfloat16().tolist() == [512.0, 1024.0]  # what rounding would make


def test_float64_is_left_alone_by_autocast():
    c = case(*SHAPES[1], torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(multiscale_lora(**c), multiscale_lora(**c).double())
        assert multiscale_lora(**c).dtype == torch.float64


def test_gradcheck():
    c = case((3, 2, 5), 4, (1.0, 3.0), 2, torch.float64)
    base = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)

    def on_weight(x, a, b):
        return multiscale_lora(x, c["weight"], c["bias"], a, b, c["scale"])

    def on_base(x, a, b, base):
        return multiscale_lora(x, None, None, a, b, c["scale"], base_output=base)

    inputs = c["x"], c["lora_a"], c["lora_b"]
    assert torch.autograd.gradcheck(on_weight, inputs)
    assert torch.autograd.gradcheck(on_base, (*inputs, base))


@pytest.mark.parametrize("shape", [(7, 41), (3, 5, 41)])
def test_a_base_output_serves_as_the_weight_does_and_its_gradient_passes_through(shape):
    c = case(shape, 16, (1.0, 2.0), 3)
    wanted = gradients(multiscale_lora(**c), c)
    d = cast(c, torch.float32) | {"scale": c["scale"]}
    base = F.linear(d["x"], d["weight"], d["bias"])
    base.retain_grad()
    out = multiscale_lora(d["x"], None, None, d["lora_a"], d["lora_b"], d["scale"], base_output=base)
    out.retain_grad()
    for got, want in zip(gradients(out, d), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(base.grad, out.grad)


def test_transposed_weights_and_strided_rows_change_nothing():
    c = case((6, 4, 10), 16, (1.0, 2.0), 2)
    wanted = gradients(multiscale_lora(**c), c)
    d = cast(c, torch.float32) | {"scale": c["scale"]}
    d["weight"] = d["weight"].t().contiguous().t()
    leaf = d["x"].detach().transpose(0, 2).contiguous().requires_grad_()
    d["x"] = leaf.transpose(0, 2)
    d["x"].retain_grad()
    assert not d["x"].is_contiguous()
    assert not d["weight"].is_contiguous()
    for got, want in zip(gradients(multiscale_lora(**d), d), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,)])
@pytest.mark.parametrize("with_base", [False, True])
def test_no_row_at_all_and_one_bare_row_have_their_gradients(shape, with_base):
    c = case(shape, 3, (1.0, 2.0), 1)
    if with_base:
        c |= {"weight": None, "bias": None, "base_output": torch.zeros(*shape[:-1], 3)}
    out, dx, da, db = gradients(multiscale_lora(**c), c)
    assert out.shape == (*shape[:-1], 3)
    assert dx.shape == shape
    empty = 0 in shape
    assert (torch.count_nonzero(da) == 0) == empty
    assert (torch.count_nonzero(db) == 0) == empty


@pytest.mark.parametrize("needed", ["x", "lora_a", "lora_b"])
def test_gradients_are_made_only_where_they_are_needed(needed):
    c = case(*SHAPES[2])
    wanted = gradients(multiscale_lora(**c), c)[1 + ["x", "lora_a", "lora_b"].index(needed)]
    d = {n: t.detach().requires_grad_(n == needed) for n, t in c.items()}
    gradients(multiscale_lora(**d), d)
    assert torch.equal(d[needed].grad, wanted)
    assert all(d[n].grad is None for n in d if n != needed)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("boundary", [0, 1, 13, 21])
@pytest.mark.parametrize("with_base", [False, True])
def test_rows_set_aside_are_two_separate_backward_passes(boundary, with_base, autocast):
    shape, outputs, scales, rho = (3, 7, 11), 5, (1.0, 2.0, 3.0), 2

    def run(c, x, aside=None):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            base = F.linear(x, c["weight"], c["bias"]) if with_base else None
            frozen = (None, None) if with_base else (c["weight"], c["bias"])
            return multiscale_lora(
                x, *frozen, c["lora_a"], c["lora_b"], c["scale"], base_output=base, set_aside=aside
            )

    c = case(shape, outputs, scales, rho)
    aside = SetAside(boundary, torch.full((6, 11), 0.5), torch.full((5, 6), 0.5))
    out, dx, da, db = gradients(run(c, c["x"], aside), c)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream = upstream.bfloat16().to(out.dtype).view(-1, outputs)
    parts = []
    for rows in (slice(None, boundary), slice(boundary, None)):
        d = case(shape, outputs, scales, rho)
        x = d["x"].detach().view(-1, 11)[rows].requires_grad_()
        run(d, x).backward(upstream[rows])
        parts.append((x.grad, d["lora_a"].grad, d["lora_b"].grad))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(da, parts[0][1], **close)
    torch.testing.assert_close(db, parts[0][2], **close)
    torch.testing.assert_close(aside.lora_a - 0.5, parts[1][1], **close)
    torch.testing.assert_close(aside.lora_b - 0.5, parts[1][2], **close)
    torch.testing.assert_close(dx.view(-1, 11), torch.cat([parts[0][0], parts[1][0]]), **close)


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_gives_the_same_gradients_and_sets_aside_once(autocast):
    results = []
    for wrapped in (False, True):
        c = case(*SHAPES[2])
        aside = SetAside(20, torch.zeros_like(c["lora_a"]), torch.zeros_like(c["lora_b"]))

        def layer(x, c=c, aside=aside):
            return multiscale_lora(**{**c, "x": x}, set_aside=aside).tanh()

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = checkpoint(layer, c["x"], use_reentrant=False) if wrapped else layer(c["x"])
        results.append([*gradients(out, c), aside.lora_a, aside.lora_b])
    assert all(torch.equal(plain, again) for plain, again in zip(*results, strict=True))
    assert all(torch.count_nonzero(t) for t in results[0])


def test_one_layer_used_twice_in_a_graph_adds_its_gradients():
    c = case((4, 6), 6, (1.0, 2.0), 2, torch.float64)
    aside = SetAside(3, torch.zeros_like(c["lora_a"]), torch.zeros_like(c["lora_b"]))
    hidden = multiscale_lora(**c, set_aside=aside).tanh()
    got = gradients(multiscale_lora(**{**c, "x": hidden}, set_aside=aside), c)
    exact = cast(c, torch.float64)
    wanted = gradients(loop({**exact, "x": loop(exact, 2).tanh()}, 2), exact)
    torch.testing.assert_close(got[:2], wanted[:2])
    torch.testing.assert_close(got[2] + aside.lora_a, wanted[2])
    torch.testing.assert_close(got[3] + aside.lora_b, wanted[3])


def test_adam_on_scaled_rows_is_adam_with_row_learning_rates():
    rate, eps, scales = 1e-2, 1e-8, (1.0, 4.0, 8.0, 12.0)
    c = case((16, 5), 3, scales, 1, torch.float64)
    k, factor = torch.tensor(scales), 6.0
    target = torch.randn(16, 3, dtype=torch.float64)
    a, b = c["lora_a"], c["lora_b"]
    plain_rows = [(a[i : i + 1].detach() * scales[i]).requires_grad_() for i in range(4)]
    plain_b = b.detach().clone().requires_grad_()
    scaled = torch.optim.Adam([a, b], lr=rate, eps=eps)
    groups = [
        {"params": [r], "lr": rate * s, "eps": eps / s} for r, s in zip(plain_rows, scales, strict=True)
    ]
    plain = torch.optim.Adam([*groups, {"params": [plain_b]}], lr=rate, eps=eps)
    for _ in range(50):
        for optimizer, rows, up, scale in (
            (scaled, [a], b, factor * k),
            (plain, plain_rows, plain_b, torch.full((4,), factor)),
        ):
            optimizer.zero_grad()
            out = multiscale_lora(c["x"].detach(), c["weight"], None, torch.cat(rows), up, scale)
            (out - target).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(torch.cat(plain_rows), a * k[:, None].double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain_b, b, rtol=1e-12, atol=1e-12)
    assert (a - case((16, 5), 3, scales, 1, torch.float64)["lora_a"]).abs().max() > 0.05


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        if isinstance(out, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, out.numel())
        return out


def test_more_scales_are_no_more_operations_and_no_delta_is_made():
    counted = []
    for scales in ((1.0, 2.0), tuple(map(float, range(1, 17)))):  # a single row would save a transposing copy
        c = case((3, 64), 48, scales, 1)
        with Operations() as seen:
            out = multiscale_lora(**c)
            out.backward(torch.ones(3, 48))
        counted.append(seen.names)
        assert seen.largest < 64 * 48
    assert counted[0] == counted[1]
    assert sum("mm" in name for name in counted[0]) == 3 + 5  # x A^T, x W^T, h B^T; p, p A, g W, p^T x, h^T g


def test_what_is_frozen_may_not_require_a_gradient():
    for name in ("weight", "bias", "scale"):
        c = case(*SHAPES[1])
        c[name].requires_grad_()
        with pytest.raises(ConfigError, match=name):
            multiscale_lora(**c)


def test_exactly_one_base_is_taken():
    c = case(*SHAPES[1])
    base = torch.zeros(7, 16)
    for wrong in ({"base_output": base}, {"weight": None}, {"weight": None, "base_output": base}):
        with pytest.raises(ConfigError, match="base_output"):
            multiscale_lora(**{**c, **wrong})
    multiscale_lora(**{**c, "weight": None, "bias": None, "base_output": base})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", torch.zeros(7, 40)),
        ("x", torch.zeros(())),
        ("x", torch.zeros(7, 41, dtype=torch.int64)),
        ("weight", torch.zeros(41, 16)),
        ("weight", torch.zeros(16, 41, dtype=torch.uint8)),
        ("bias", torch.zeros(1)),
        ("lora_a", torch.zeros(4)),
        ("lora_b", torch.zeros(4, 16)),
        ("scale", torch.ones(3)),
        ("scale", torch.ones(1)),
        ("scale", torch.ones(4, dtype=torch.float64)),
        ("set_aside", SetAside(8, torch.zeros(4, 41), torch.zeros(16, 4))),
        ("set_aside", SetAside(-1, torch.zeros(4, 41), torch.zeros(16, 4))),
        ("set_aside", SetAside(3, torch.zeros(41, 4), torch.zeros(16, 4))),
        ("set_aside", SetAside(3, torch.zeros(4, 41), torch.zeros(16, 4, dtype=torch.int64))),
    ],
)
def test_shapes_and_dtypes_outside_the_contract_are_refused(name, wrong):
    with pytest.raises(DataError):
        multiscale_lora(**{**case(*SHAPES[1]), name: wrong})


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(BackendError, match="reference"):
        multiscale_lora(**case(*SHAPES[1]), backend="native")
