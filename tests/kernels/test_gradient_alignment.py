"""gradient_alignment against a loop over tensors in float64, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from asepsis.errors import BackendError, ConfigError, DataError
from asepsis.kernels import AlignmentStats, Segments, gradient_alignment

RULES = ["reflect", "drop", "signed", "conflict"]
SIZES = (3, 1, 70, 2, 4096, 9000, 5, 4097)
REGIMES = {  # raw_weight, raw_weight_below, reference_loss
    "full": (0.0, 1.0, 0.7),
    "full, some raw": (0.25, 1.0, 0.7),
    "blend": (0.0, 0.3, 0.1),
    "raw": (0.0, 1.0, 0.1),
}


def arenas(sizes=SIZES, dtype=torch.float32, seed=0, zeros=True):
    generator = torch.Generator().manual_seed(seed)
    g, r = torch.randn(2, sum(sizes), generator=generator, dtype=torch.float64).to(dtype)
    r = r + torch.cat([torch.full((s,), 0.5 * (-1) ** i) for i, s in enumerate(sizes)]) * g  # some conflict
    g, r = g.contiguous(), r.to(dtype).contiguous()
    if zeros:
        r.split(sizes)[2].zero_()
        g.split(sizes)[3].zero_()
        g.split(sizes)[6].zero_()
        r.split(sizes)[6].zero_()
    return g, r


def twin(g, r, sizes, rule, granularity, raw_weight, below, loss, min_loss, min_norm):
    """The formula as one would say it, for finite arenas."""
    norms = [float(t.norm()) for t in r.double().split(sizes) if t.norm() > 0]
    nbar = sum(norms) / max(1, len(norms))
    full = nbar > min_norm and loss > min_loss
    m = raw_weight if full else below
    aligned, live = [], []
    for gp, rp in zip(g.double().split(sizes), r.double().split(sizes), strict=True):
        gd, rd = (g.double(), r.double()) if granularity == "global" else (gp, rp)
        d, rr, gg = float(gd @ rd), float(rd @ rd), float(gd @ gd)
        if rr == 0 or gg == 0:
            aligned.append(gp)
            continue
        live.append((d < 0, d / math.sqrt(rr * gg)))
        a = {
            "reflect": abs(d) / rr * rp,
            "drop": max(d, 0) / rr * rp,
            "signed": d / rr * rp,
            "conflict": gp - min(d, 0) / rr * rp,
        }[rule]
        aligned.append((1 - m) * a + m * gp)
    shares = [sum(column) / max(1, len(live)) for column in zip(*live, strict=True)] if live else [0, 0]
    return torch.cat(aligned), (full, m, nbar, loss, *shares, len(sizes) - len(live), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_and_stats_are_those_of_the_loop(rule, regime, granularity, dtype):
    raw_weight, below, loss = REGIMES[regime]
    g, r = arenas(dtype=dtype)
    wanted, numbers = twin(g, r, SIZES, rule, granularity, raw_weight, below, loss, 0.4, 0.1)
    before, reference = g.clone(), r.clone()
    stats = gradient_alignment(
        g,
        r,
        Segments.of(SIZES),
        rule=rule,
        raw_weight=raw_weight,
        raw_weight_below=below,
        reference_loss=torch.tensor(loss),
        min_reference_loss=0.4,
        min_reference_norm=0.1,
        granularity=granularity,
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for got, want, raw in zip(*(t.split(SIZES) for t in (g, wanted, before)), strict=True):
        assert (got - want).norm() <= tolerance * max(want.norm(), raw.norm())
    assert torch.equal(r, reference)
    assert stats.shape == (8,)
    assert stats.dtype == torch.float32
    assert AlignmentStats.read(stats) == pytest.approx(numbers, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("reflect", [0.6, 0.8]), ("drop", [0.0, 0.0]), ("signed", [-0.6, -0.8]), ("conflict", [1.6, -1.2])],
)
def test_the_hand_worked_example(rule, expected):
    # r = (3, 4): rr = 25. g = (1, -2): d = 3 - 8 = -5, gg = 5, cosine = -5 / (5 sqrt 5).
    # |d| / rr = 0.2, so a = 0.2 (3, 4) = (0.6, 0.8). Removing the conflict: g + 0.2 r = (1.6, -1.2).
    g, r = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    stats = AlignmentStats.read(gradient_alignment(g, r, Segments.of([2]), rule=rule))
    torch.testing.assert_close(g, torch.tensor(expected))
    assert stats[:3] == (True, 0.0, 5.0)
    assert math.isnan(stats.reference_loss)
    assert stats[4:] == pytest.approx((1.0, -1 / math.sqrt(5), 0, 0))
    # a quarter of the raw gradient: 0.75 (0.6, 0.8) + 0.25 (1, -2) = (0.7, 0.1)
    if rule == "reflect":
        g = torch.tensor([1.0, -2.0])
        gradient_alignment(g, r, Segments.of([2]), raw_weight=0.25)
        torch.testing.assert_close(g, torch.tensor([0.7, 0.1]))


@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from(["tensor", "global"]))
def test_the_papers_update_descends_on_the_reference(seed, m, granularity):
    sizes = (3, 5, 1, 8)
    g, r = arenas(sizes, torch.float64, seed, zeros=False)
    before = g.clone()
    gradient_alignment(g, r, Segments.of(sizes), raw_weight=m, granularity=granularity)
    whole = [sum(sizes)] if granularity == "global" else sizes
    for new, old, toward in zip(g.split(whole), before.split(whole), r.split(whole), strict=True):
        assert new @ toward >= (1 - 2 * m) * abs(old @ toward) - 1e-9


@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("rule", RULES)
def test_aligning_twice_is_aligning_once(rule, granularity):
    g, r = arenas(dtype=torch.float64)
    segments = Segments.of(SIZES)
    gradient_alignment(g, r, segments, rule=rule, granularity=granularity)
    once = g.clone()
    gradient_alignment(g, r, segments, rule=rule, granularity=granularity)
    torch.testing.assert_close(g, once, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("rule", RULES)
def test_the_size_of_the_reference_is_nothing_and_that_of_the_gradient_a_factor(rule, granularity):
    options = {"rule": rule, "granularity": granularity, "raw_weight": 0.2}
    g, r = arenas()
    plain, scaled, times = g.clone(), g.clone(), g * 8
    segments = Segments.of(SIZES)
    gradient_alignment(plain, r, segments, **options)
    gradient_alignment(scaled, r * 64, segments, **options)
    gradient_alignment(times, r, segments, **options)
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(times, plain * 8, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("below", [0.3, 1.0])
@pytest.mark.parametrize("loss", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("where", ["g", "r", "both"])
def test_a_tensor_that_is_not_finite_is_zeroed_alone_and_counted(where, bad, rule, loss, below, granularity):
    sizes, others = (3, 5, 70, 8), [0, 2, 3]
    options = {"rule": rule, "raw_weight_below": below, "granularity": granularity}
    options["reference_loss"] = torch.tensor(loss)
    g, r = arenas(sizes, zeros=False)
    rest_g, rest_r = (torch.cat([t.split(sizes)[i] for i in others]) for t in (g, r))
    for name, arena in (("g", g), ("r", r)):
        if where in (name, "both"):
            arena[5] = bad
    stats = AlignmentStats.read(gradient_alignment(g, r, Segments.of(sizes), **options))
    wanted = AlignmentStats.read(
        gradient_alignment(rest_g, rest_r, Segments.of([sizes[i] for i in others]), **options)
    )
    parts = g.split(sizes)
    assert torch.count_nonzero(parts[1]) == 0
    torch.testing.assert_close(torch.cat([parts[i] for i in others]), rest_g)
    assert (stats.n_non_finite, stats.n_kept_raw) == (1, 0)
    assert wanted.n_non_finite == 0
    assert stats.full == bool(loss)
    assert stats[4:6] == pytest.approx(wanted[4:6], rel=1e-5)


def test_the_norm_of_a_reference_that_is_not_finite_is_left_out_of_the_mean():
    g, r = torch.ones(3), torch.tensor([2.0, math.nan, 4.0])
    stats = AlignmentStats.read(gradient_alignment(g, r, Segments.of([1, 1, 1])))
    assert stats.reference_norm == 3.0


def test_a_reference_loss_of_nan_does_not_let_raw_gradients_through():
    g, r = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    stats = gradient_alignment(g, r, Segments.of([2]), reference_loss=torch.tensor(math.nan))
    assert AlignmentStats.read(stats).full
    torch.testing.assert_close(g, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    ("min_norm", "min_loss", "full"), [(4.9, 0.4, True), (5.0, 0.4, False), (4.9, 0.5, False)]
)
def test_the_gate_is_open_only_above_both_minima(min_norm, min_loss, full):
    g, r = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    stats = gradient_alignment(
        g,
        r,
        Segments.of([2]),
        reference_loss=torch.tensor(0.5),
        min_reference_norm=min_norm,
        min_reference_loss=min_loss,
    )
    assert AlignmentStats.read(stats)[:2] == (full, 0.0 if full else 1.0)
    torch.testing.assert_close(g, torch.tensor([0.6, 0.8] if full else [1.0, -2.0]))


@pytest.mark.parametrize("granularity", ["tensor", "global"])
def test_without_any_reference_gradient_everything_stays_raw(granularity):
    g, _ = arenas(zeros=False)
    before = g.clone()
    stats = gradient_alignment(
        g, torch.zeros_like(g), Segments.of(SIZES), raw_weight_below=0.0, granularity=granularity
    )
    assert torch.equal(g, before)
    assert AlignmentStats.read(stats).n_kept_raw == len(SIZES)


def test_float32_sums_over_a_large_tensor_keep_their_digits():
    sizes = (1_000_003, 7)
    g = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(0))
    r = g + 1
    a = abs(g.double() @ r.double()) / (r.double() @ r.double())  # one tensor, near enough
    gradient_alignment(g, r, Segments.of(sizes), granularity="global")
    torch.testing.assert_close(g.double(), a * r.double(), rtol=2e-6, atol=0)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", [None, torch.tensor(0.5)])
@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("rule", RULES)
def test_no_number_is_fetched_and_more_tensors_are_no_more_operations(rule, granularity, loss):
    counted = []
    for n in (3, 300):
        sizes = (4,) * n
        g, r = arenas(sizes, zeros=False)
        segments = Segments.of(sizes)
        with Operations() as seen:
            gradient_alignment(g, r, segments, rule=rule, granularity=granularity, reference_loss=loss)
        counted.append(seen.names)
    assert counted[0] == counted[1]
    fetches = {
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "nonzero",
        "equal",
        "_to_cpu",
        "repeat_interleave",
    }
    assert not fetches & set(counted[0])
    assert "where" not in counted[0]  # with a number in it, it copies that to the device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_nothing_waits_and_the_result_is_the_cpus():
    g, r = arenas()
    on_gpu = g.cuda(), r.cuda(), Segments.of(SIZES, "cuda")
    loss = torch.tensor(0.5, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stats = gradient_alignment(*on_gpu, raw_weight=0.2, reference_loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = gradient_alignment(g, r, Segments.of(SIZES), raw_weight=0.2, reference_loss=torch.tensor(0.5))
    torch.testing.assert_close(on_gpu[0].cpu(), g, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.cpu(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1,), (4096,), (4097,), (1, 4095, 4096, 4097, 8192, 1)])
def test_the_pieces_make_up_the_tensors(sizes):
    segments = Segments.of(sizes)
    assert segments.tensor_of.tolist() == [i for i, size in enumerate(sizes) for _ in range(size)]
    per_tensor = segments.piece_sizes.split(segments.pieces.tolist())
    assert tuple(int(p.sum()) for p in per_tensor) == sizes
    assert segments.piece_sizes.min() >= 1
    assert segments.piece_sizes.max() <= 4096


@pytest.mark.parametrize("sizes", [(), (0, 3), (-1, 4), (1.5, 2), (True, 2)])
def test_sizes_that_are_no_sizes_are_refused(sizes):
    with pytest.raises(DataError, match="sizes"):
        Segments.of(sizes)


@pytest.mark.parametrize(
    ("grads", "reference", "sizes", "loss"),
    [
        (torch.zeros(5), torch.zeros(5), (2, 2), None),
        (torch.zeros(5), torch.zeros(5), (2, 4), None),
        (torch.zeros(5), torch.zeros(4), (5,), None),
        (torch.zeros(5), torch.zeros(5, dtype=torch.float64), (5,), None),
        (torch.zeros(5).bfloat16(), torch.zeros(5).bfloat16(), (5,), None),
        (torch.zeros(5, 1), torch.zeros(5, 1), (5,), None),
        (torch.zeros(10)[::2], torch.zeros(5), (5,), None),
        (torch.zeros(5), torch.zeros(5), (5,), torch.zeros(1)),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(grads, reference, sizes, loss):
    with pytest.raises(DataError):
        gradient_alignment(grads, reference, Segments.of(sizes), reference_loss=loss)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "mirror"},
        {"granularity": "row"},
        {"raw_weight": -0.1},
        {"raw_weight": math.nan},
        {"raw_weight_below": 1.1},
        {"min_reference_loss": -1.0},
        {"min_reference_norm": math.nan},
        {"min_reference_norm": math.inf},
    ],
)
def test_settings_outside_their_bounds_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        gradient_alignment(torch.ones(2), torch.ones(2), Segments.of([2]), **wrong)


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(BackendError, match="reference"):
        gradient_alignment(torch.ones(2), torch.ones(2), Segments.of([2]), backend="native")
