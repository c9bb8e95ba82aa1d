"""The native mixing: threads change nothing, the GIL is let go, what cannot be borrowed is refused."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis import _native
from asepsis.errors import DataError

HALF = {"item_size": 4, "seed": 0, "key": 0, "kept_of_65536": 32768}


def test_no_bit_depends_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    reference, tuned = rng.integers(0, 256, (2, 4 * 300_001), np.uint8)
    one = np.zeros_like(tuned)
    kept = _native.mix(reference, tuned, one, **HALF)
    for threads in (0, 2, 8, 100):
        out = np.zeros_like(tuned)
        assert _native.mix(reference, tuned, out, threads=threads, **HALF) == kept
        assert out.tobytes() == one.tobytes()


def test_other_threads_run_meanwhile(overtakes):
    reference, tuned, out = np.zeros((3, 80_000_000), np.uint8)
    assert overtakes(lambda: _native.mix(reference, tuned, out, **HALF))


def test_maps_of_files_are_mixed_in_place(tmp_path):
    rng = np.random.default_rng(0)
    reference, tuned = rng.integers(0, 256, (2, 4004), np.uint8)
    wanted = np.zeros(4004, np.uint8)
    _native.mix(reference, tuned, wanted, **HALF)
    for name, part in (("p", reference), ("f", tuned), ("out", np.zeros(5000, np.uint8))):
        part.tofile(tmp_path / name)
    sides = [np.memmap(tmp_path / name, np.uint8, "r") for name in ("p", "f")]
    out = np.memmap(tmp_path / "out", np.uint8, "r+", offset=40, shape=4004)
    _native.mix(*sides, out, **HALF)
    out.flush()
    assert (tmp_path / "out").read_bytes() == bytes(40) + wanted.tobytes() + bytes(5000 - 4044)


def read_only():
    array = np.zeros(16, np.uint8)
    array.flags.writeable = False
    return array


SHARED = np.zeros(32, np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": np.zeros(4, np.float32)}, r"reference must be the bytes of a tensor.*got float32"),
        ({"tuned": np.zeros((4, 4), np.uint8)}, r"tuned must be the bytes .* of shape \[4, 4\]"),
        ({"tuned": np.zeros(32, np.uint8)[::2]}, "tuned must be the bytes"),
        ({"out": None}, "out must be the bytes .* got NoneType"),
        ({"out": np.zeros(32, np.uint8)[::2]}, "out must be the bytes"),
        ({"out": read_only()}, "out must be writable"),
        ({"tuned": SHARED[:16], "out": SHARED[8:24]}, "share no memory"),
        ({"tuned": np.zeros(12, np.uint8)}, "tuned has length 12, 16 was wanted"),
        ({"item_size": 3}, 'item_size must be one of 1, 2, 4, 8, got "3"'),
        ({"kept_of_65536": 65537}, "kept_of_65536 must be at most 65536, got 65537"),
    ],
)
def test_what_cannot_be_mixed_is_a_data_error(change, message):
    options = {
        "reference": np.zeros(16, np.uint8),
        "tuned": np.zeros(16, np.uint8),
        "out": np.zeros(16, np.uint8),
        **HALF,
        **change,
    }
    buffers = [options.pop(name) for name in ("reference", "tuned", "out")]
    with pytest.raises(DataError, match=message):
        _native.mix(*buffers, **options)
