"""Both paths of mix keep its contract: bits are copied, masks are nested, parts and threads change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asepsis.errors import ConfigError, DataError
from asepsis.kernels import mix
from asepsis.kernels.mixing import lanes, tensor_key

PATHS = ("reference", "native")


def versions(n, size, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 256, n * size, np.uint8)
    return reference, reference ^ np.uint8(165)  # no element is equal in both


def mixed(n, size, *, backend="native", seed=1, key=2, ratio=0.4, start=0):
    reference, tuned = versions(n, size)
    out = np.full(n * size, 90, np.uint8)
    kept = mix(
        reference,
        tuned,
        out,
        item_size=size,
        seed=seed,
        key=key,
        reserve_ratio=ratio,
        start=start,
        backend=backend,
    )
    return out, kept


def from_tuned(out, n, size):
    """Which elements came from the tuned version, each whole."""
    reference, tuned = (part.reshape(n, size) for part in versions(n, size))
    is_tuned = (out.reshape(n, size) == tuned).all(1)
    assert (is_tuned | (out.reshape(n, size) == reference).all(1)).all()
    return is_tuned


@given(
    n=st.integers(0, 700),
    size=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 2**64 - 1),
    key=st.integers(0, 2**64 - 1),
    ratio=st.floats(0, 1),
    start=st.integers(0, 2**62),
)
def test_the_paths_agree_bit_for_bit(n, size, seed, key, ratio, start):
    ways = [mixed(n, size, backend=path, seed=seed, key=key, ratio=ratio, start=start) for path in PATHS]
    np.testing.assert_array_equal(ways[0][0], ways[1][0])
    assert ways[0][1] == ways[1][1]


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_ratio_of_zero_or_one_is_a_copy_bit_for_bit(size, backend):
    n = 70_001
    reference, tuned = versions(n, size)
    for ratio, wanted, kept in ((0.0, reference, 0), (1.0, tuned, n)):
        out, count = mixed(n, size, backend=backend, ratio=ratio)
        np.testing.assert_array_equal(out, wanted)
        assert count == kept


@pytest.mark.parametrize("backend", PATHS)
def test_a_smaller_ratio_keeps_a_part_of_what_a_larger_one_keeps(backend):
    n, before = 20_000, np.zeros(20_000, bool)
    for ratio in (0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0):
        out, count = mixed(n, 4, backend=backend, ratio=ratio)
        keep = from_tuned(out, n, 4)
        assert count == keep.sum()
        assert not (before & ~keep).any()
        before = keep


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.9])
def test_the_realized_ratio_is_within_four_sigma(ratio):
    n = 1_000_000
    for seed in range(5):
        _, kept = mixed(n, 2, seed=seed, ratio=ratio)
        assert abs(kept - n * ratio) < 4 * math.sqrt(n * ratio * (1 - ratio))


def test_lanes_are_uniform_and_neighbors_independent():
    found = lanes(0, tensor_key("encoder.layer.0.weight"), 0, 400_000)
    counts = np.bincount(found >> 8, minlength=256)
    expected = len(found) / 256
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
    x = found / 65536 - 0.5
    for lag in (1, 2, 3, 4, 768):
        assert abs((x[:-lag] * x[lag:]).mean() * 12) < 5 / math.sqrt(len(x))


def test_seeds_and_tensors_have_masks_of_their_own():
    base = lanes(0, tensor_key("a"), 0, 100_000) / 65536 - 0.5
    for other in (lanes(1, tensor_key("a"), 0, 100_000), lanes(0, tensor_key("b"), 0, 100_000)):
        assert abs((base * (other / 65536 - 0.5)).mean() * 12) < 5 / math.sqrt(100_000)


def test_the_mask_of_this_version_is_the_mask_of_the_next():
    # a manifest names seed and ratio, not the mask: it must mean the same for ever
    assert tensor_key("bert.embeddings.word_embeddings.weight") == 8630061693919582728
    assert lanes(7, 11, 5, 6).tolist() == [17460, 11184, 16644, 2338, 24230, 52307]


@settings(max_examples=30)
@given(cut=st.integers(0, 1000), start=st.integers(0, 9))
def test_a_tensor_mixed_in_parts_is_the_tensor_mixed_at_once(cut, start):
    reference, tuned = versions(1000, 4)
    whole, count = mixed(1000, 4, start=start)
    out, parts = np.zeros_like(whole), 0
    for first, last in ((0, cut), (cut, 1000)):
        at = slice(4 * first, 4 * last)
        parts += mix(
            reference[at],
            tuned[at],
            out[at],
            item_size=4,
            seed=1,
            key=2,
            reserve_ratio=0.4,
            start=start + first,
        )
    np.testing.assert_array_equal(out, whole)
    assert parts == count


def test_nan_and_infinity_are_bits_like_any():
    reference = torch.full((1000,), float("nan"))
    tuned = torch.full((1000,), float("inf"))
    out = torch.zeros(1000)
    kept = mix(
        *(t.view(torch.uint8).numpy() for t in (reference, tuned, out)),
        item_size=4,
        seed=0,
        key=0,
        reserve_ratio=0.5,
    )
    assert int(out.isinf().sum()) == kept
    assert int(out.isnan().sum()) == 1000 - kept


def test_the_rust_core_is_used_unless_asked_otherwise(monkeypatch):
    from asepsis import _native

    monkeypatch.setattr(_native, "mix", lambda *_, **__: -1)
    assert mixed(10, 4, backend="auto")[1] == -1
    assert mixed(10, 4, backend="reference")[1] >= 0


@pytest.mark.parametrize("backend", PATHS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reserve_ratio": 1.5}, ConfigError, r"reserve_ratio must lie in \[0, 1\], got 1.5"),
        ({"reserve_ratio": math.nan}, ConfigError, "reserve_ratio"),
        ({"seed": -1}, ConfigError, "seed must lie in"),
        ({"key": 1 << 64}, ConfigError, "key must lie in"),
        ({"item_size": 3}, ConfigError, "item_size must be one of 1, 2, 4, 8, got 3"),
        ({"reference": np.zeros(12, np.uint8)}, DataError, "reference"),
        ({"tuned": np.zeros(20, np.uint8)}, DataError, "tuned"),
        (
            {
                "item_size": 8,
                "tuned": np.zeros(12, np.uint8),
                "reference": np.zeros(12, np.uint8),
                "out": np.zeros(12, np.uint8),
            },
            DataError,
            "out|reference",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(change, error, message, backend):
    options = {
        "reference": np.zeros(16, np.uint8),
        "tuned": np.zeros(16, np.uint8),
        "out": np.zeros(16, np.uint8),
        "item_size": 4,
        "seed": 0,
        "key": 0,
        "reserve_ratio": 0.5,
        **change,
    }
    buffers = [options.pop(name) for name in ("reference", "tuned", "out")]
    with pytest.raises(error, match=message):
        mix(*buffers, backend=backend, **options)
