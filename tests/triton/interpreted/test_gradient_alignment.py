"""The Triton path of gradient_alignment against the contract in float64, and what only it could get wrong."""

from __future__ import annotations

import math

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from asepsis.errors import BackendError, DataError
from asepsis.kernels import AlignmentStats, Segments, gradient_alignment
from asepsis.kernels._triton import gradient_alignment as twin

RULES = ["reflect", "drop", "signed", "conflict"]
SIZES = (3, 1, 70, 2, 4096, 9000, 5)  # a whole tile only once the arena's cuts come to lie inside the sixth
REGIMES = {  # raw_weight, raw_weight_below, reference_loss
    "full": (0.0, 1.0, 0.7),
    "full, some raw": (0.25, 1.0, 0.7),
    "blend": (0.0, 0.3, 0.1),
    "raw": (0.0, 1.0, 0.1),
}
CASES = [(rule, g, "full, some raw") for rule in RULES for g in ("tensor", "global")]
CASES += [("reflect", "tensor", regime) for regime in REGIMES if regime != "full, some raw"]


def arenas(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    g, r = torch.randn(2, sum(sizes), generator=generator)
    sign = torch.cat([torch.full((s,), 0.5 * (-1) ** i) for i, s in enumerate(sizes)])
    return g, r + sign * g  # half of the tensors in conflict


def options(regime="full, some raw", rule="reflect", granularity="tensor"):
    raw_weight, below, loss = REGIMES[regime]
    return {
        "rule": rule,
        "granularity": granularity,
        "raw_weight": raw_weight,
        "raw_weight_below": below,
        "reference_loss": torch.tensor(loss),
        "min_reference_loss": 0.4,
        "min_reference_norm": 0.1,
    }


def run(g, r, sizes, backend, **settings):
    out = g.clone()
    stats = gradient_alignment(out, r, Segments.of(sizes), backend=backend, **settings)
    return out, stats


def assert_as_good(g, r, sizes, fenced=lambda t: t, **settings):
    """The Triton path's error against float64 is at most twice the reference's, tensor by tensor."""
    exact, numbers = run(g.double(), r.double(), sizes, "reference", **settings)
    eager, _ = run(g, r, sizes, "reference", **settings)
    out, reference = fenced(g), fenced(r)
    stats = gradient_alignment(out, reference, Segments.of(sizes), backend="triton", **settings)
    assert torch.equal(reference, r)
    for got, want, usual in zip(*(t.split(sizes) for t in (out, exact, eager)), strict=True):
        allowed = 2 * (usual - want).norm() + 3e-7 * want.norm()
        assert (got - want).norm() <= allowed
    assert AlignmentStats.read(stats) == pytest.approx(AlignmentStats.read(numbers), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize(("rule", "granularity", "regime"), CASES)
def test_gradients_and_stats_are_the_contracts(rule, granularity, regime, fenced, fenced_outputs):
    g, r = arenas(SIZES)
    r.split(SIZES)[2].zero_()
    g.split(SIZES)[3].zero_()
    assert_as_good(g, r, SIZES, fenced, **options(regime, rule, granularity))


def test_hundreds_of_tensors_of_all_sizes_come_out_right(fenced):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 5001, (200,), generator=generator).tolist()
    sizes[:3] = [1, 5000, 4096]
    assert_as_good(*arenas(sizes), sizes, fenced, **options())


@pytest.mark.parametrize("granularity", ["tensor", "global"])
def test_more_tiles_and_tensors_than_one_load_holds_are_all_counted(granularity, fenced, monkeypatch):
    monkeypatch.setattr(twin, "_PARTS", 2)
    monkeypatch.setattr(twin, "_TENSORS", 4)
    sizes = (5, 4096 * 4 + 1, 3, 9, 1, 7, 2, 30, 11)
    assert_as_good(*arenas(sizes), sizes, fenced, **options(granularity=granularity))


@pytest.mark.parametrize("where", ["g", "r"])
@pytest.mark.parametrize("granularity", ["tensor", "global"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf, 1e30])
def test_a_tensor_that_is_not_finite_is_zeroed_alone_and_counted(bad, granularity, where):
    sizes = (3, 5, 70, 8)
    g, r = arenas(sizes)
    (g if where == "g" else r)[5] = bad
    settings = options(granularity=granularity)
    want, numbers = run(g, r, sizes, "reference", **settings)
    got, stats = run(g, r, sizes, "triton", **settings)
    assert torch.count_nonzero(got.split(sizes)[1]) == 0
    torch.testing.assert_close(got, want)
    assert AlignmentStats.read(stats) == pytest.approx(AlignmentStats.read(numbers), rel=1e-5)
    assert AlignmentStats.read(stats).n_non_finite == 1


def test_a_loss_of_nan_counts_as_high_and_none_leaves_the_gate_to_the_norm():
    g, r = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    for loss in (None, torch.tensor(math.nan), torch.tensor(math.nan, dtype=torch.bfloat16)):
        out, stats = run(g, r, (2,), "triton", reference_loss=loss, min_reference_loss=0.4)
        torch.testing.assert_close(out, torch.tensor([0.6, 0.8]))
        assert AlignmentStats.read(stats).full
        assert math.isnan(AlignmentStats.read(stats).reference_loss)
    out, stats = run(g, r, (2,), "triton", min_reference_norm=5.0)
    assert torch.equal(out, g)
    assert AlignmentStats.read(stats)[:3] == (False, 1.0, 5.0)


def test_without_any_reference_gradient_everything_stays_raw():
    g, _ = arenas(SIZES[:4])
    for granularity in ("tensor", "global"):
        out, stats = run(g, torch.zeros_like(g), SIZES[:4], "triton", granularity=granularity)
        assert torch.equal(out, g)
        assert AlignmentStats.read(stats).n_kept_raw == 4


def test_equal_gradients_give_equal_bits():
    g, r = arenas(SIZES)
    first, second = (run(g, r, SIZES, "triton", **options()) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_three_launches_whatever_the_number_of_tensors(monkeypatch):
    launched = []
    true_run = InterpretedFunction.run
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda self, *a, **k: (launched.append(self), true_run(self, *a, **k))
    )
    for sizes in ((4,), (4,) * 30):
        launched.clear()
        run(*arenas(sizes), sizes, "triton")
        assert len(launched) == 3


def test_the_operator_is_registered_as_what_it_is():
    g, r = arenas((3, 2))
    tables = Segments.of((3, 2))
    settings = ("reflect", False, 0.0, 1.0, torch.tensor(0.5), 0.4, 0.1)
    arguments = (g, r, tables.tiles, tables.tile_tensor, tables.first_tile, *settings)
    torch.library.opcheck(torch.ops.asepsis.gradient_alignment.default, arguments)


def test_float64_and_no_tensors_at_all_are_refused_and_auto_knows_another_way():
    g, r = (t.double() for t in arenas((3,)))
    with pytest.raises(BackendError, match="float64, it takes float32"):
        run(g, r, (3,), "triton")
    assert torch.equal(run(g, r, (3,), "auto")[0], run(g, r, (3,), "reference")[0])
    with pytest.raises(DataError, match="sizes"):
        run(torch.zeros(0), torch.zeros(0), (), "triton")


@pytest.mark.parametrize("sizes", [(1,), (4096,), (4097, 1), (3, 4095, 4096, 4097, 8192, 1), (9000, 4096)])
def test_tiles_cover_every_element_once_and_none_crosses_a_tensor_or_a_cut(sizes):
    segments = Segments.of(sizes)
    low, high = segments.tiles.tolist()
    assert [low[0], *high] == [*low, sum(sizes)]
    tensor_of = segments.tensor_of.tolist()
    for first, last, tensor in zip(low, high, segments.tile_tensor.tolist(), strict=True):
        assert set(tensor_of[first:last]) == {tensor}
        assert first // 4096 == (last - 1) // 4096
    starts = [low[i] for i in segments.first_tile.tolist()[:-1]]
    assert starts == [sum(sizes[:i]) for i in range(len(sizes))]
    assert segments.first_tile[-1] == len(low)
