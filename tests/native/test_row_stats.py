"""The native row statistics: threads change nothing, the GIL is let go, what cannot be borrowed is refused."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis import _native
from asepsis.errors import DataError

F32 = {"reference_dtype": "float32", "tuned_dtype": "float32"}


def noise(v, d, seed):
    return np.random.default_rng(seed).standard_normal((v, d), dtype=np.float32).view(np.uint8)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("v", [0, 1, 257, 5000])
def test_no_bit_depends_on_the_number_of_threads(v):
    p, f = noise(v, 33, 0), noise(v, 33, 1)
    if v > 300:
        f[300, :4] = 255  # NaN
    one = _native.row_stats(p, f, columns=True, **F32)
    for threads in (0, 2, 8, 100):
        for _ in range(3):
            same(_native.row_stats(p, f, columns=True, threads=threads, **F32), one)


def test_results_have_the_dtypes_of_the_stub():
    found = _native.row_stats(noise(3, 5, 0), noise(3, 5, 1), columns=True, **F32)
    kinds = {name: (values.dtype.name, values.shape) for name, values in found.items()}
    assert kinds == {
        **dict.fromkeys(("delta_squared", "delta_dot", "reference_squared", "delta_abs"), ("float64", (3,))),
        "delta_max": ("float32", (3,)),
        **dict.fromkeys(("delta_argmax", "zeros", "non_finite"), ("int64", (3,))),
        **dict.fromkeys(("column_delta", "column_delta_squared"), ("float64", (5,))),
    }


def test_rows_may_be_any_stride_apart():
    p, f = noise(10, 7, 0), noise(10, 7, 1)
    wide = np.full((10, 33), 255, np.uint8)
    wide[:, 1:29] = f
    wanted = _native.row_stats(p, f, **F32)
    same(_native.row_stats(p, wide[:, 1:29], **F32), wanted)
    back = _native.row_stats(p[::-1], wide[::-1, 1:29], **F32)
    same({name: np.ascontiguousarray(values[::-1]) for name, values in back.items()}, wanted)


def test_other_threads_run_meanwhile(overtakes):
    p, f = noise(40_000, 256, 0), noise(40_000, 256, 1)
    assert overtakes(lambda: _native.row_stats(p, f, **F32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": np.zeros((2, 4), np.float32)}, "reference must be the bytes of a matrix"),
        ({"tuned": np.zeros((2, 24), np.uint8)[:, ::2]}, "tuned must be the bytes of a matrix"),
        ({"tuned": np.zeros(12, np.uint8)}, "tuned must be the bytes of a matrix"),
        ({"tuned": None}, "got NoneType"),
        ({"tuned": np.zeros((2, 16), np.uint8)}, "a row of tuned has length 4, 3 was wanted"),
        ({"tuned": np.zeros((3, 12), np.uint8)}, "tuned has length 3, 2 was wanted"),
        ({"tuned": np.zeros((2, 13), np.uint8)}, "a row has length 13, 12 was wanted"),
        ({"tuned": np.zeros((2, 0), np.uint8)}, "columns must be at least 1"),
        ({"tuned_dtype": "float64"}, "dtype must be one of float32, float16, bfloat16"),
        ({"round_to": "int8"}, "dtype must be one of float32, float16, bfloat16"),
        ({"threads": -1}, "threads must not be negative, got -1"),
        ({"pairs": np.zeros((2, 2), np.int32)}, r"pairs must be int64\[N, 2\], got int32"),
        ({"pairs": np.zeros((2, 3), np.int64)}, r"pairs must be int64\[N, 2\]"),
        ({"pairs": np.array([[0, 0], [1, 2]])}, r"row 2 \(entry 1 of the row map\) is outside 0..2"),
    ],
)
def test_what_cannot_be_measured_is_a_data_error(change, message):
    arguments = {
        "reference": np.zeros((2, 12), np.uint8),
        "tuned": np.zeros((2, 12), np.uint8),
        **F32,
        **change,
    }
    with pytest.raises(DataError, match=message):
        _native.row_stats(arguments.pop("reference"), arguments.pop("tuned"), **arguments)
