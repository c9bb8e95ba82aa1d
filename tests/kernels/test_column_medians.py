"""Both paths of column_medians keep its contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from asepsis.core.weights.headers import read_header
from asepsis.errors import BackendError, DataError
from asepsis.kernels import ColumnMedians, column_medians
from asepsis.kernels.column_medians import column_medians_files

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PATHS = ("reference", "native")


def pair(v, d, dtypes=(torch.float32, torch.float32), *, seed=0):
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(v, d, generator=g) * 0.05
    f = p + torch.randn(v, d, generator=g) * 1e-2
    return p.to(dtypes[0]), f.to(dtypes[1])


def check(found: ColumnMedians, delta: torch.Tensor) -> None:
    wanted = delta.double().numpy()
    np.testing.assert_array_equal(found.median, np.median(wanted, axis=0))
    distance = abs(wanted - np.median(wanted, axis=0))
    np.testing.assert_array_equal(found.deviation, np.median(distance, axis=0))
    assert found.rows == len(wanted)


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("d", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("v", [1, 2, 255, 256])
def test_medians_are_numpys_at_every_edge_of_lanes(v, d, backend):
    p, f = pair(v, d)
    check(column_medians(p, f, backend=backend), f - p)


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", DTYPES)
def test_dtypes_may_differ_and_the_reference_be_rounded(left, right, backend):
    p, f = pair(33, 20, (left, right))
    check(column_medians(p, f, backend=backend), f.float() - p.float())
    rounded = column_medians(p, f, round_to=right, backend=backend)
    check(rounded, f.float() - p.to(right).float())


@pytest.mark.parametrize("backend", PATHS)
def test_more_rows_than_a_strip_holds_change_nothing(backend):
    p, f = pair(80_000, 300)  # 96 MB of deltas, in strips of 64
    found = column_medians(p, f, sample=None, backend=backend)
    np.testing.assert_array_equal(found.median, np.median((f - p).numpy().astype(np.float64), axis=0))


@pytest.mark.parametrize("backend", PATHS)
def test_rows_that_are_not_finite_are_left_out(backend):
    p, f = pair(9, 5)
    f[2, 3], f[7, 0] = float("nan"), float("-inf")
    check(column_medians(p, f, backend=backend), (f - p)[[0, 1, 3, 4, 5, 6, 8]])
    with pytest.raises(DataError, match="none of 2 is"):
        column_medians(p, f, rows=np.array([2, 7]), backend=backend)


@pytest.mark.parametrize("backend", PATHS)
def test_rows_are_picked_by_mask_index_and_map(backend):
    p, f = pair(20, 6)
    mask = np.arange(20) % 3 == 0
    check(column_medians(p, f, rows=mask, backend=backend), (f - p)[torch.from_numpy(mask)])
    check(column_medians(p, f, rows=np.flatnonzero(mask), backend=backend), (f - p)[torch.from_numpy(mask)])
    row_map = [(0, 3), (5, 1), (2, 2)]
    check(column_medians(p, f, row_map=row_map, backend=backend), f[[3, 1, 2]] - p[[0, 5, 2]])
    check(
        column_medians(p, f, row_map=row_map, rows=np.array([2, 0]), backend=backend), f[[2, 3]] - p[[2, 0]]
    )


@pytest.mark.parametrize("backend", PATHS)
def test_a_sample_is_spread_evenly_and_near_the_exact_median(backend):
    p, f = pair(5001, 8)
    sampled = column_medians(p, f, sample=1001, backend=backend)
    check(sampled, (f - p)[::5])
    exact = column_medians(p, f, sample=None, backend=backend)
    check(exact, f - p)
    rank = ((f - p).double().numpy() < sampled.median).mean(0)
    assert (abs(rank - 0.5) < 4 * 0.5 / np.sqrt(1001)).all()


@pytest.mark.parametrize("backend", PATHS)
def test_a_row_of_the_same_size_stands_out_where_it_moved_otherwise(backend):
    g = torch.Generator().manual_seed(3)
    p = torch.zeros(500, 4)
    f = torch.randn(500, 4, generator=g) * torch.tensor([1.0, 1.0, 1.0, 0.01])
    f[7] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    found = column_medians(p, f, backend=backend)
    z = found.z((f - p).numpy())
    assert abs(z[7]).argmax() == 3
    assert z[7, 3] > 50
    assert np.abs(z[:, :3]).max() < 6


def test_a_column_that_moved_alike_has_no_spread():
    found = ColumnMedians(median=np.array([1.0, 1.0]), deviation=np.array([0.0, 2.0]), rows=3)
    np.testing.assert_array_equal(found.z(np.array([[1.0, 1.0], [2.0, 1.0]])), [[0.0, 0.0], [np.inf, 0.0]])


def test_files_give_what_memory_gives(tmp_path):
    p, f = pair(40, 12, (torch.float32, torch.bfloat16))
    save_file({"p": p, "f": f}, tmp_path / "both.safetensors")
    header = read_header(tmp_path / "both.safetensors")
    found = column_medians_files(header["p"].matrix(), header["f"].matrix(), round_to="bfloat16", sample=7)
    wanted = column_medians(p, f, round_to="bfloat16", sample=7)
    np.testing.assert_array_equal(found.median, wanted.median)
    np.testing.assert_array_equal(found.deviation, wanted.deviation)


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": np.ones(3, bool)}, "rows must be a mask or indices of the 4 rows"),
        ({"rows": np.array([4])}, "rows must be a mask or indices of the 4 rows"),
        ({"rows": np.zeros(4, bool)}, "none of 0 is"),
        ({"sample": 0}, "sample must be at least 1"),
        ({"round_to": "int8"}, "round_to must be one of"),
        ({"row_map": [(0, 4)]}, "names row 4 of tuned"),
    ],
)
def test_arguments_outside_the_contract_are_refused(options, message, backend):
    p, f = pair(4, 3)
    with pytest.raises(DataError, match=message):
        column_medians(p, f, backend=backend, **options)
    with pytest.raises(BackendError):
        column_medians(p, f, backend="triton")
