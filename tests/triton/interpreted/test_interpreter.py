"""The interpreter computes what a GPU would, bfloat16 included, and the fences see who climbs over."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from asepsis.kernels._triton._interp import dot


@triton.jit
def arithmetic(a, b, out, N: tl.constexpr):
    index = tl.arange(0, N)
    x, y = tl.load(a + index), tl.load(b + index)
    tl.store(out + index, x + y)
    tl.store(out + N + index, x * y)
    tl.store(out + 2 * N + index, x - y)
    tl.store(out + 3 * N + index, tl.maximum(x, y))
    tl.store(out + 4 * N + index, (x.to(tl.float32) * 1.0009765625).to(x.dtype))
    tl.store(out + 5 * N + index, -x)


@triton.jit
def product(a, b, out, N: tl.constexpr):
    index = tl.arange(0, N)
    square = index[:, None] * N + index[None, :]
    acc = dot(tl.load(a + square), tl.load(b + square), tl.zeros([N, N], tl.float32), "ieee")
    tl.store(out + square, acc)


@triton.jit
def shifted(source, target, by, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(target + index + by, tl.load(source + index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_rounds_as_torch_does(dtype):
    a, b = (torch.randn(2, 256) * 3).to(dtype)
    out = torch.empty(6, 256, dtype=dtype)
    arithmetic[(1,)](a, b, out, N=256)
    scaled = (a.float() * 1.0009765625).to(dtype)
    assert torch.equal(out, torch.stack([a + b, a * b, a - b, torch.maximum(a, b), scaled, -a]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_product_is_summed_in_float32(dtype):
    a, b = torch.randn(2, 32, 32).to(dtype)
    out = torch.empty(32, 32)
    product[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=0, atol=2e-5)


def test_a_kernel_that_writes_past_its_output_is_found(fenced):
    source, target = torch.ones(16), torch.zeros(16)
    inside = fenced(target)
    shifted[(1,)](source, inside, 0, N=16)
    assert inside.tolist() == [1.0] * 16
    outside = torch.full((48,), float("nan"))
    shifted[(1,)](source, outside[16:32], 1, N=16)
    assert outside[32] == 1.0  # it really lands in the neighbor: a margin left NaN proves that nobody wrote


def test_memory_a_kernel_did_not_write_is_nan(fenced_outputs):
    assert torch.empty(3, 5).isnan().all()
    assert torch.zeros(4).new_empty(7).isnan().all()
    assert torch.empty_like(torch.zeros(2, 2, dtype=torch.bfloat16)).isnan().all()
