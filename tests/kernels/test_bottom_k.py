"""Both paths of bottom_k keep its contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asepsis.errors import BackendError, DataError
from asepsis.kernels import bottom_k

SPECIAL = [0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), -float("nan")]
values = hnp.arrays(
    np.float32, st.integers(0, 40), elements=st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))
)


@given(values, st.floats(0, 1), st.sampled_from(["reference", "native", "auto"]))
def test_every_path_is_the_head_of_a_stable_argsort(values, share, backend):
    k = round(share * len(values))
    picked = bottom_k(torch.from_numpy(values), k, backend=backend)
    assert picked.dtype == torch.int64
    np.testing.assert_array_equal(picked.numpy(), np.argsort(values, kind="stable")[:k])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_narrow_and_strided_values_are_ordered_as_they_are(dtype, backend):
    values = torch.tensor([2.0, 9.0, 1.0, 9.0, 1.0, 9.0], dtype=dtype, requires_grad=True)[::2]
    assert bottom_k(values, 3, backend=backend).tolist() == [1, 2, 0]


def test_float64_keeps_its_precision_and_is_refused_where_it_would_not():
    values = torch.tensor([1 + 1e-12, 1.0], dtype=torch.float64)
    assert bottom_k(values, 2).tolist() == [1, 0]
    with pytest.raises(BackendError, match="orders float32"):
        bottom_k(values, 2, backend="native")


@pytest.mark.parametrize(
    ("values", "k"), [(torch.zeros(2, 2), 1), (torch.zeros(3, dtype=torch.int64), 1), (torch.zeros(3), 4)]
)
def test_arguments_outside_the_contract_are_refused(values, k):
    for backend in ("reference", "native"):
        with pytest.raises(DataError):
            bottom_k(values, k, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 500, 40_000])
def test_halves_are_ranked_as_they_are_stored(monkeypatch, dtype, n):
    """Every pattern of 16 bits, many of them often: the same indices as for the floats they stand for."""
    bits = np.random.default_rng(0).integers(0, 1 << 16, n).astype(np.uint16)
    bits[: n // 2] |= 0x7C00  # infinities and NaN of both kinds
    values = torch.from_numpy(bits.view(np.int16)).view(dtype)
    widened = values.float()
    wanted = np.argsort(widened.numpy(), kind="stable")

    def to(self, *args, **kwargs):
        raise AssertionError("a copy was made")

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "float", to)
    for k in (0, n // 1000, n // 100, n // 10, n // 2, n):
        np.testing.assert_array_equal(bottom_k(values, k, backend="native").numpy(), wanted[:k])


def test_dtypes_that_the_core_does_not_order_are_refused():
    values = torch.zeros(3, dtype=torch.float8_e4m3fn)
    with pytest.raises(BackendError, match="float8_e4m3fn"):
        bottom_k(values, 1, backend="native")
