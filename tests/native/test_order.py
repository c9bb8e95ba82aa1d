"""The native order, against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asepsis import _native
from asepsis.errors import LedgerError

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 1e-42]
losses = hnp.arrays(
    np.float32, st.integers(0, 60), elements=st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))
)


@given(losses, st.floats(0, 1))
def test_bottom_k_is_the_head_of_a_stable_argsort(values, share):
    for k in {0, int(share * len(values)), len(values)}:
        picked = _native.bottom_k(values, k)
        assert picked.dtype == np.int64
        np.testing.assert_array_equal(picked, np.argsort(values, kind="stable")[:k])


@given(losses)
def test_argsort_is_numpys_stable_one(values):
    np.testing.assert_array_equal(_native.argsort(values), np.argsort(values, kind="stable"))
    valid = int((~np.isnan(values)).sum())
    np.testing.assert_array_equal(
        _native.argsort(values, nan="drop"), np.argsort(values, kind="stable")[:valid]
    )


def adversaries(n: int) -> dict[str, np.ndarray]:
    """Values that a threshold by sample, or a sort by digits, could trip over."""
    rng = np.random.default_rng(0)
    x = rng.exponential(0.3, n).astype(np.float32)
    zeros, nans = rng.random(n) < 0.5, rng.random(n)
    return {
        "usual": x,
        "constant": np.full(n, 1.5, np.float32),
        "half zeros": np.where(zeros, np.float32(0), x),
        "both zeros": np.where(zeros, np.float32(0), np.float32(-0.0)),
        "two values": (x > 0.3).astype(np.float32),
        "ascending": np.sort(x),
        "descending": np.sort(x)[::-1].copy(),
        "1 % NaN": np.where(nans < 0.01, np.float32(np.nan), x),
        "95 % NaN": np.where(nans < 0.95, np.float32(-np.nan), x),
        "subnormal": np.minimum(x, 8).astype(np.float32) * np.float32(1e-39),
        "of bfloat16": (x.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "of both signs": rng.standard_normal(n, dtype=np.float32),
    }


@pytest.mark.parametrize("name", adversaries(1))
@pytest.mark.parametrize("n", [99, 3000, 150_000])
def test_no_distribution_moves_an_index(name, n):
    values = adversaries(n)[name]
    wanted = np.argsort(values, kind="stable")
    np.testing.assert_array_equal(_native.argsort(values), wanted)
    for k in (1, n // 1000, n // 100, n // 10, n // 2, n - 1, n):
        np.testing.assert_array_equal(_native.bottom_k(values, k), wanted[:k])
        valid = min(k, int((~np.isnan(values)).sum()))
        np.testing.assert_array_equal(_native.bottom_k(values, valid, nan="drop"), wanted[:valid])


@pytest.mark.parametrize("name", adversaries(1))
def test_threads_change_no_index(name):
    values = adversaries(600_000)[name]
    for k in (1, 6000, 300_000):
        one = _native.bottom_k(values, k)
        for threads in (0, 2, 7):
            np.testing.assert_array_equal(_native.bottom_k(values, k, threads=threads), one)


def test_subnormal_losses_are_told_apart_where_the_processor_flushes_them():
    values = adversaries(50_000)["subnormal"]
    wanted = np.argsort(values, kind="stable")
    assert torch.set_flush_denormal(True)
    try:
        picked, order = _native.bottom_k(values, 500), _native.argsort(values)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(picked, wanted[:500])
    np.testing.assert_array_equal(order, wanted)


@pytest.mark.parametrize("n_classes", [2, 100, 20_000])
@pytest.mark.parametrize("name", ["usual", "constant", "two values", "1 % NaN", "descending"])
def test_classes_of_very_different_sizes_are_picked_as_if_alone(name, n_classes):
    values = adversaries(60_000)[name]
    labels = np.minimum(np.random.default_rng(1).zipf(1.3, len(values)), n_classes) - 1
    indices, offsets = _native.bottom_k_per_class(values, labels, 0.01, n_classes)
    order = np.lexsort((np.arange(len(values)), values, labels))  # NaN last, ties by index
    starts = np.searchsorted(labels[order], np.arange(n_classes + 1))
    wanted = [
        order[start : start + max(1, int(0.01 * (end - start)))]
        for start, end in itertools.pairwise(starts)
        if end > start
    ]
    np.testing.assert_array_equal(indices, np.concatenate(wanted))
    assert offsets[-1] == len(indices)


@given(losses)
def test_dropped_nan_are_never_picked(values):
    valid = int((~np.isnan(values)).sum())
    np.testing.assert_array_equal(
        _native.bottom_k(values, valid, nan="drop"), np.argsort(values, kind="stable")[:valid]
    )
    with pytest.raises(LedgerError, match=f"only {valid} can be picked"):
        _native.bottom_k(values, valid + 1, nan="drop")


@given(losses, st.floats(0.001, 1), st.integers(0, 2**32 - 1))
def test_every_class_is_picked_as_if_alone(values, ratio, seed):
    labels = np.random.default_rng(seed).integers(0, 4, len(values))
    indices, offsets = _native.bottom_k_per_class(values, labels, ratio, 6)
    assert len(offsets) == 7
    for c, (start, end) in enumerate(itertools.pairwise(offsets)):
        members = np.flatnonzero(labels == c)
        k = max(1, int(ratio * len(members))) if len(members) else 0
        wanted = members[np.argsort(values[members], kind="stable")[:k]]
        np.testing.assert_array_equal(indices[start:end], wanted)


@given(losses)
def test_ranks_invert_a_stable_argsort(values):
    order = np.argsort(values, kind="stable")
    ordinal = _native.ranks(values)
    np.testing.assert_array_equal(ordinal[order], np.arange(len(values)))
    # numpy's unique puts every NaN in one group, as we do
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    first = (np.cumsum(size) - size)[group]
    np.testing.assert_array_equal(_native.ranks(values, method="min"), first)
    np.testing.assert_array_equal(_native.ranks(values, method="average"), first + (size[group] - 1) / 2)


def test_ranks_by_histogram_are_off_by_half_a_bin_at_most():
    values = adversaries(100_000)["of both signs"]
    exact, rough = _native.ranks(values, method="average"), _native.ranks(values, method="histogram")
    size = np.bincount(values.view(np.uint32) >> 16)[values.view(np.uint32) >> 16]
    assert (np.abs(rough - exact) <= size / 2).all()
    assert size.max() < len(values) / 50


@pytest.mark.parametrize("n", [1, 16, 1000, 100_000])
def test_equal_losses_go_by_index(n):
    for value in (0.0, 1.5, np.inf, np.nan):
        k = max(1, n // 3)
        np.testing.assert_array_equal(_native.bottom_k(np.full(n, value, np.float32), k), np.arange(k))


def test_the_sign_of_a_zero_decides_nothing():
    values = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    np.testing.assert_array_equal(_native.bottom_k(values, 4), [0, 1, 2, 3])


def test_nan_of_either_sign_comes_after_infinity():
    values = np.array([-np.nan, np.inf, np.nan, -np.inf, 0.0], np.float32)
    assert np.signbit(values[0])
    np.testing.assert_array_equal(_native.bottom_k(values, 5), [3, 4, 1, 0, 2])
    np.testing.assert_array_equal(_native.ranks(values, nan="drop"), [np.nan, 2, np.nan, 0, 1])


def test_few_distinct_losses_keep_numpys_order():
    # bf16 logits leave a few hundred distinct losses, half of them zero
    rng = np.random.default_rng(0)
    values = np.maximum(0, rng.integers(-200, 200, 200_000) / 256).astype(np.float32)
    for k in (1, 2000, 120_000, 199_999):
        np.testing.assert_array_equal(_native.bottom_k(values, k), np.argsort(values, kind="stable")[:k])


@pytest.mark.parametrize(
    "values",
    [np.zeros(8), np.zeros((4, 2), np.float32), np.zeros(8, np.float32)[::2], [0.0, 1.0], None],
    ids=["float64", "two-dimensional", "strided", "list", "none"],
)
def test_a_buffer_that_cannot_be_borrowed_is_refused_by_name(values):
    for call in (lambda: _native.bottom_k(values, 1), lambda: _native.ranks(values)):
        with pytest.raises(LedgerError, match="values must be a contiguous 1-D numpy array of float32, got"):
            call()


def test_read_only_arrays_can_be_borrowed():
    values = np.arange(4, dtype=np.float32)[::-1].copy()
    values.flags.writeable = False
    np.testing.assert_array_equal(_native.bottom_k(values, 2), [3, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: _native.bottom_k(x, 5), "5 values were asked for, only 4"),
        (lambda x: _native.bottom_k(x, -1), "k must not be negative, got -1"),
        (lambda x: _native.bottom_k(x, 1, nan="error"), "1 values are NaN, the first at index 2"),
        (lambda x: _native.bottom_k(x, 1, nan="first"), "nan must be one of last, error, drop"),
        (lambda x: _native.ranks(x, method="max"), "method must be one of ordinal, average, min"),
        (lambda x: _native.bottom_k_per_class(x, np.arange(3), 0.1, 3), "labels has length 3, 4 was wanted"),
        (lambda x: _native.bottom_k_per_class(x, np.arange(4), 0.1, 3), "label 3 of row 3 is outside"),
        (lambda x: _native.bottom_k_per_class(x, np.arange(4), 0.0, 4), "ratio must be in"),
        (
            lambda x: _native.bottom_k_per_class(x, np.arange(4), 0.1, 4, nan="drop"),
            "the class of row 2 should give 1",
        ),
    ],
)
def test_core_errors_arrive_as_ledger_errors(call, message):
    with pytest.raises(LedgerError, match=message):
        call(np.array([0, 1, np.nan, 2], np.float32))


def test_jaccard_counts_common_over_all():
    sets = [np.array(s, np.int64) for s in ([1, 2, 3], [3, 2, 4], [])]
    assert _native.jaccard(sets[0], sets[1]) == 0.5
    assert _native.jaccard(sets[0], sets[2]) == 0
    assert _native.jaccard(sets[2], sets[2]) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", adversaries(1))
def test_no_distribution_moves_an_index_of_halves(name, dtype):
    tensor = torch.from_numpy(adversaries(150_000)[name]).to(getattr(torch, dtype))
    halves, wanted = (
        tensor.view(torch.int16).numpy().view(np.uint16),
        np.argsort(tensor.float().numpy(), kind="stable"),
    )
    for k in (1, 150, 15_000, 140_000):
        np.testing.assert_array_equal(_native.bottom_k(halves, k, dtype=dtype), wanted[:k])
        np.testing.assert_array_equal(_native.bottom_k(halves, k, dtype=dtype, threads=2), wanted[:k])
        valid = min(k, int((~tensor.isnan()).sum()))
        np.testing.assert_array_equal(
            _native.bottom_k(halves, valid, dtype=dtype, nan="drop"), wanted[:valid]
        )


def test_a_forbidden_nan_among_halves_is_named_and_other_dtypes_are_refused():
    halves = torch.tensor([1.0, float("nan"), 2.0, -float("nan")], dtype=torch.bfloat16)
    halves = halves.view(torch.int16).numpy().view(np.uint16)
    with pytest.raises(LedgerError, match="2 values are NaN, the first at index 1"):
        _native.bottom_k(halves, 1, dtype="bfloat16", nan="error")
    with pytest.raises(LedgerError, match="only 2 can be picked"):
        _native.bottom_k(halves, 5, dtype="bfloat16", nan="drop")
    with pytest.raises(LedgerError, match="must be a contiguous 1-D numpy array of uint16"):
        _native.bottom_k(np.zeros(3, np.float16), 1, dtype="float16")
    with pytest.raises(LedgerError, match="must be a contiguous 1-D numpy array of float32"):
        _native.bottom_k(halves, 1)
    with pytest.raises(LedgerError, match="dtype must be one of"):
        _native.bottom_k(halves, 1, dtype="float64")
