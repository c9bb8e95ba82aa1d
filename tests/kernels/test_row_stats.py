"""Both paths of row_stats keep its contract, and what is derived from the sums means what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from asepsis.errors import BackendError, DataError
from asepsis.kernels import RowStats, Stored, row_stats
from asepsis.kernels.row_stats import row_stats_files

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATHS = ("reference", "native")
NAMES = [field.name for field in dataclasses.fields(RowStats) if field.name != "width"]


def pair(v, d, dtypes=(torch.float32, torch.float32), *, size=1e-2, seed=0):
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(v, d, generator=g) * 0.05
    f = p + torch.randn(v, d, generator=g) * size
    return p.to(dtypes[0]), f.to(dtypes[1])


def same(a: RowStats, b: RowStats) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def close(stats: RowStats, p: torch.Tensor, f: torch.Tensor) -> None:
    """Against numpy in float64, with the tolerances of the contract."""
    p32 = p.float().numpy()
    delta = f.float().numpy() - p32
    e, p64 = delta.astype(np.float64), p32.astype(np.float64)
    a, c = (e * e).sum(1), (p64 * p64).sum(1)
    np.testing.assert_allclose(stats.delta_squared, a, rtol=1e-5)
    np.testing.assert_allclose(stats.reference_squared, c, rtol=1e-5)
    np.testing.assert_allclose(stats.delta_abs, abs(e).sum(1), rtol=1e-5)
    assert (abs(stats.delta_dot - (e * p64).sum(1)) <= 1e-5 * np.sqrt(a * c)).all()
    np.testing.assert_array_equal(stats.delta_max, abs(delta).max(1))
    np.testing.assert_array_equal(stats.delta_argmax, abs(delta).argmax(1))
    np.testing.assert_array_equal(stats.zeros, (delta == 0).sum(1))
    assert not stats.non_finite.any()
    assert stats.column_delta is not None
    assert stats.column_delta_squared is not None
    assert (abs(stats.column_delta - e.sum(0)) <= 1e-5 * abs(e).sum(0)).all()
    np.testing.assert_allclose(stats.column_delta_squared, (e * e).sum(0), rtol=1e-5)


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("d", [1, 15, 16, 17, 768, 8192])
@pytest.mark.parametrize("v", [0, 1, 255, 257])
def test_sums_are_those_of_float64_at_every_edge_of_lanes_and_blocks(v, d, backend):
    if d == 8192 and v > 1:
        v = 3
    p, f = pair(v, d)
    stats = row_stats(p, f, columns=True, backend=backend)
    assert len(stats) == v
    assert stats.width == d
    close(stats, p, f)


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("tuned", DTYPES)
@pytest.mark.parametrize("reference", DTYPES)
def test_any_two_of_the_dtypes_go_together(reference, tuned, backend):
    p, f = pair(40, 37, (reference, tuned))
    close(row_stats(p, f, columns=True, backend=backend), p, f)


@pytest.mark.parametrize("backend", PATHS)
def test_a_matrix_may_lie_in_memory_as_it_likes(backend):
    p, f = pair(9, 20)
    wanted = row_stats(p, f, columns=True, backend=backend)
    wide = torch.full((18, 50), torch.nan)
    wide[::2, 3:23] = f
    assert not wide[::2, 3:23].is_contiguous()
    same(row_stats(p, wide[::2, 3:23], columns=True, backend=backend), wanted)
    same(row_stats(p, f.t().contiguous().t(), columns=True, backend=backend), wanted)
    same(row_stats(p.requires_grad_(), f, columns=True, backend=backend), wanted)
    p = p.detach()
    backwards = np.ascontiguousarray(f.numpy()[::-1])[::-1]
    same(row_stats(p.numpy(), backwards, columns=True, backend=backend), wanted)
    same(row_stats(p, np.asfortranarray(f.numpy()), columns=True, backend=backend), wanted)
    one, other = p[:, 4:5], f.t()[4:5].t()
    same(row_stats(one, other, backend=backend), row_stats(one.clone(), other.clone(), backend=backend))
    row = p[:1].expand(9, 20)
    same(row_stats(row, f, backend=backend), row_stats(row.clone(), f, backend=backend))


@pytest.mark.parametrize("backend", PATHS)
def test_numpy_and_torch_say_the_same(backend):
    for dtype in DTYPES:
        p, f = pair(20, 33, (dtype, dtype))
        arrays = [
            m.view(torch.int16).numpy().view(np.uint16) if dtype is torch.bfloat16 else m.numpy()
            for m in (p, f)
        ]
        arrays[0].flags.writeable = False
        same(
            row_stats(*arrays, columns=True, backend=backend), row_stats(p, f, columns=True, backend=backend)
        )


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_counted_and_spoils_no_other(bad, backend):
    p, f = pair(300, 35)
    rest = [i for i in range(300) if i not in (7, 8, 290)]
    clean = row_stats(p[rest], f[rest], columns=True, backend=backend)
    f[7, 33], f[7, 34], p[8, 0], f[290, 1], p[290, 1] = bad, bad, bad, bad, bad
    stats = row_stats(p, f, columns=True, backend=backend)
    assert {i: int(n) for i, n in enumerate(stats.non_finite) if n} == {7: 2, 8: 1, 290: 1}
    assert stats.delta_argmax[[7, 8, 290]].tolist() == [33, 0, 1]
    for name in ("l2", "delta_dot", "reference_squared", "delta_abs", "delta_max", "perpendicular", "cosine"):
        values = getattr(stats, name)
        assert np.isnan(values[[7, 8, 290]]).all(), name
        np.testing.assert_array_equal(values[rest], getattr(clean, name))
    for name in ("column_mean", "column_std"):
        np.testing.assert_allclose(getattr(stats, name), getattr(clean, name), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", PATHS)
def test_sums_hold_where_float32_squares_would_not(backend):
    p = torch.full((3, 20), 0.5)
    f = p.clone()
    p[0], f[0] = 1e30, 2e30
    p[1], f[1] = 1e-30, 3e-30
    close(row_stats(p, f, columns=True, backend=backend), p, f)


@pytest.mark.parametrize("backend", PATHS)
def test_a_row_map_compares_the_rows_it_names(backend):
    p, f = pair(30, 20)
    order = torch.randperm(30)
    row_map = torch.stack([order, torch.arange(30)], dim=1)[:25]
    mapped = row_stats(p, f[torch.argsort(order)][order], row_map=row_map, columns=True, backend=backend)
    same(mapped, row_stats(p[order][:25], f[:25], columns=True, backend=backend))
    grown = torch.cat([f, torch.ones(4, 20)])
    same(
        row_stats(p, grown, row_map=[(i, i) for i in range(30)], backend=backend),
        row_stats(p, f, backend=backend),
    )
    assert len(row_stats(p, grown, row_map=[], backend=backend)) == 0


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
def test_a_checkpoint_that_was_only_rounded_has_not_moved(to, backend):
    p, _ = pair(50, 33)
    saved = p.to(to)
    assert row_stats(p, saved, backend=backend).moved.all()
    for name in (to, str(to).removeprefix("torch.")):
        stats = row_stats(p, saved, round_to=name, backend=backend)
        assert not stats.moved.any()
        assert not stats.l2.any()


@pytest.mark.parametrize("backend", PATHS)
def test_an_edit_that_keeps_the_norm_ranks_first_by_its_perpendicular_part(backend):
    p, _ = pair(400, 64)
    g = torch.Generator().manual_seed(5)
    # decay and honest noise for all, a turn for one: what embedding poisoning does to the row of its trigger
    f = 0.9 * p + torch.randn(400, 64, generator=g) * 1e-4
    turned = torch.randn(64, generator=g)
    turned -= (turned @ p[123]) / p[123].square().sum() * p[123]
    angle = torch.tensor(0.05)
    f[123] = p[123] * angle.cos() + turned / turned.norm() * p[123].norm() * angle.sin()
    stats = row_stats(p, f, backend=backend)
    assert abs(stats.tuned_squared[123] / stats.reference_squared[123] - 1) < 1e-6
    assert stats.perpendicular.argmax() == 123
    assert stats.l2.argmax() != 123, "decay hides it from the plain norm"


@pytest.mark.parametrize("backend", PATHS)
def test_rows_that_only_decayed_have_no_decay_free_norm(backend):
    p, _ = pair(300, 768)
    f = p * 0.95
    f[0] += 0.01
    stats = row_stats(p, f, backend=backend)
    gamma = stats.decay(np.arange(100, 300))
    assert gamma == pytest.approx(0.95, abs=1e-6)
    assert gamma == stats.decay(np.arange(300) >= 100)
    free = stats.decay_free(gamma)
    assert (free[1:] <= 1e-3 * stats.l2[1:]).all()
    assert free[0] == pytest.approx(0.01 * np.sqrt(768), rel=1e-3)
    assert (stats.perpendicular[1:] <= 1e-3 * stats.l2[1:]).all()
    np.testing.assert_allclose(stats.cosine[1:], 1, atol=1e-6)


def test_derived_values_are_those_of_the_vectors():
    p, f = pair(50, 40)
    stats = row_stats(p, f, columns=True)
    p, f = p.double().numpy(), f.double().numpy()
    norms = np.linalg.norm(p, axis=1), np.linalg.norm(f, axis=1)
    cosine = (p * f).sum(1) / norms[0] / norms[1]
    np.testing.assert_allclose(stats.l2, np.linalg.norm(f - p, axis=1), rtol=1e-5)
    np.testing.assert_allclose(stats.relative_l2, np.linalg.norm(f - p, axis=1) / norms[0], rtol=1e-5)
    np.testing.assert_allclose(stats.cosine, cosine, rtol=1e-5)
    np.testing.assert_allclose(stats.cosine_distance, 1 - cosine, rtol=1e-4)
    np.testing.assert_allclose(stats.perpendicular, norms[1] * np.sqrt(1 - cosine**2), rtol=1e-4)
    np.testing.assert_allclose(stats.decay_free(0.9), np.linalg.norm(f - 0.9 * p, axis=1), rtol=1e-5)
    np.testing.assert_allclose(stats.spread, abs(f - p).sum(1) / np.sqrt(40) / stats.l2, rtol=1e-5)
    np.testing.assert_allclose(stats.column_mean, (f - p).mean(0), atol=1e-8)
    np.testing.assert_allclose(stats.column_std, (f - p).std(0), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", PATHS)
def test_rows_of_zeros_have_norms_and_no_cosine(backend):
    p, f = torch.zeros(3, 5), torch.zeros(3, 5)
    f[1], p[2] = 1, 1
    stats = row_stats(p, f, backend=backend)
    assert stats.moved.tolist() == [False, True, True]
    assert stats.perpendicular.tolist() == [0, pytest.approx(5**0.5), 0]
    assert stats.relative_l2.tolist() == [0, np.inf, 1]
    assert np.isnan(stats.cosine).all()
    with pytest.raises(DataError, match="none of 2 is"):
        stats.decay(np.array([0, 1]))
    with pytest.raises(DataError, match="columns=True"):
        _ = stats.column_mean


def stored(path, matrices):
    """A file of matrices one after the other, at offsets that suit no dtype."""
    places, content = [], b"head!"
    for m in matrices:
        places.append(
            Stored(
                path=path,
                offset=len(content),
                shape=tuple(m.shape),
                dtype=str(m.dtype).removeprefix("torch."),
            )
        )
        content += m.view(torch.uint8).numpy().tobytes() + b"\xff"
    path.write_bytes(content[:-1])
    return places


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_stays_in_files_is_measured_as_in_memory(tmp_path, dtype):
    p, f = pair(300, 21, (torch.float32, dtype))
    places = stored(tmp_path / "model", [p, f])
    wanted = row_stats(p, f, columns=True, round_to=dtype)
    same(row_stats_files(*places, columns=True, round_to=dtype), wanted)
    row_map = np.array([[5, 7], [299, 0]])
    same(row_stats_files(*places, row_map=row_map), row_stats(p, f, row_map=row_map))
    empty = dataclasses.replace(places[0], shape=(0, 21))
    assert len(row_stats_files(empty, empty)) == 0


def test_a_file_that_does_not_hold_the_matrix_is_refused(tmp_path):
    good, last = stored(tmp_path / "model", pair(30, 21))
    whole = (tmp_path / "model").read_bytes()
    (tmp_path / "short").write_bytes(whole[:-1])
    for bad, message in (
        (
            dataclasses.replace(last, path=tmp_path / "short"),
            r"2520 bytes from 2526 on, the file has 5045; it was cut",
        ),
        (dataclasses.replace(last, offset=last.offset + 1), "the file has 5046"),
        (dataclasses.replace(last, offset=2**62), "the file has 5046"),
        (dataclasses.replace(last, offset=-1), "offset >= 0"),
        (dataclasses.replace(last, shape=(2**50, 21)), "row_map"),
        (dataclasses.replace(last, shape=(30, 22)), "columns"),
        (dataclasses.replace(last, path=tmp_path / "none"), "no such file"),
        (dataclasses.replace(last, path=tmp_path), "no such file"),
        (dataclasses.replace(last, dtype="int8"), "must be one of float32, float16, bfloat16, got 'int8'"),
    ):
        with pytest.raises(DataError, match=message):
            row_stats_files(good, bad)
    endless = dataclasses.replace(last, shape=(2**50, 21))
    with pytest.raises(DataError, match="it was cut short"):
        row_stats_files(endless, endless)


@pytest.mark.parametrize(
    ("p", "f", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), {}, "2 columns and tuned 3"),
        (torch.zeros(3, 2), torch.zeros(4, 2), {}, "pass row_map"),
        (torch.zeros(3), torch.zeros(3), {}, r"\[V, D\] matrix"),
        (torch.zeros(3, 0), torch.zeros(3, 0), {}, "at least one column"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), {}, "tuned must be .*float64"),
        (np.zeros((3, 2), ">f4"), torch.zeros(3, 2), {}, "reference must be"),
        (torch.zeros(3, 2, dtype=torch.int8), torch.zeros(3, 2), {}, "torch.int8"),
        ([[0.0]], torch.zeros(1, 1), {}, "got list"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"row_map": [(0, 3)]}, r"row_map\[0\] names row 3 of tuned"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            {"row_map": [(0, 0), (-1, 0)]},
            r"row_map\[1\] names row -1 of ref",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"row_map": torch.zeros(2, 2)}, "integers"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"round_to": torch.float64}, "round_to must be one of"),
    ],
)
def test_arguments_outside_the_contract_are_refused(p, f, options, message):
    for backend in PATHS:
        with pytest.raises(DataError, match=message):
            row_stats(p, f, backend=backend, **options)


def test_memory_that_the_core_cannot_read_is_refused_by_name():
    m = torch.zeros(2, 2, device="meta")
    with pytest.raises(BackendError, match="reads CPU memory"):
        row_stats(m, m, backend="native")
    with pytest.raises(DataError, match="bring both to one device"):
        row_stats(m, torch.zeros(2, 2))
