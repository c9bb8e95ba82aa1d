"""Triton's interpreter, repaired for bfloat16, and tensors between fences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle


# Triton 3.6 calculates with the bit patterns of bfloat16 and truncates when it casts to it. With these replacements
# everything but tl.sum rounds as a GPU and torch do; look again at every change of Triton's version.
def _is_bf16(handle: Any) -> bool:
    return getattr(handle.dtype, "scalar", None) == tl.bfloat16


def _widened(handle: Any) -> np.ndarray:
    return (handle.data.astype(np.uint32) << 16).view(np.float32) if _is_bf16(handle) else handle.data


def _rounded(values: Any) -> np.ndarray:
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    nearest_even = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest_even)


_dot, _cast, _binary, _unary = Builder.create_dot, Builder.cast_impl, Builder.binary_op, Builder.unary_op


def _create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    if _is_bf16(a) or _is_bf16(b):
        return Handle(np.matmul(_widened(a), _widened(b), dtype=np.float32) + d.data, d.dtype.scalar)
    return _dot(self, a, b, d, *options)


def _cast_impl(self: Any, source: Any, target: Any) -> Any:
    if target.scalar == tl.bfloat16 and not _is_bf16(source):
        return Handle(_rounded(source.data.astype(np.float32)), target.scalar)
    if _is_bf16(source) and target.scalar != tl.bfloat16:
        return Handle(_widened(source).astype(interpreter._get_np_dtype(target)), target.scalar)
    return _cast(self, source, target)


def _binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
    if not (_is_bf16(left) or _is_bf16(right)):
        return _binary(self, left, right, operation)
    out = operation(_widened(left), _widened(right))
    return Handle(out, tl.int1) if out.dtype == bool else Handle(_rounded(out), tl.bfloat16)


def _unary_op(self: Any, value: Any, operation: Any) -> Any:
    if _is_bf16(value):
        return Handle(_rounded(operation(_widened(value))), tl.bfloat16)
    return _unary(self, value, operation)


@pytest.fixture(autouse=True, scope="session")
def _interpreter_knows_bf16() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(Builder, "create_dot", _create_dot)
    patch.setattr(Builder, "cast_impl", _cast_impl)
    patch.setattr(Builder, "binary_op", _binary_op)
    patch.setattr(Builder, "unary_op", _unary_op)
    patch.setattr(Builder, "get_bf16", lambda _, v: Handle(_rounded([v]), tl.bfloat16), raising=False)
    yield
    patch.undo()


MARGIN = 2048  # elements on either side; divisible by 16, so that nothing changes in how the kernel loads
Fence = Callable[[Tensor], Tensor]


@pytest.fixture
def fenced() -> Iterator[Fence]:
    """Give a copy of a tensor that stands between margins of NaN, and check at the end that nobody wrote there.

    The interpreter lets a kernel read and write past its arguments as a GPU does. What it reads there is NaN, or a number
    far outside every index, and shows in the result.
    """
    fences: list[tuple[Tensor, Tensor]] = []

    def fence(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        filler = math.nan if floating else torch.iinfo(tensor.dtype).max // 2
        store = torch.full((tensor.numel() + 2 * MARGIN,), filler, dtype=tensor.dtype)
        inner = store[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
        inner.copy_(tensor)
        fences.append((store, store.clone()))
        return inner

    yield fence
    for store, before in fences:
        for margin in (slice(None, MARGIN), slice(len(store) - MARGIN, None)):
            assert torch.equal(torch.nan_to_num(store[margin]), torch.nan_to_num(before[margin]))
            assert not store.is_floating_point() or bool(store[margin].isnan().all())


@pytest.fixture
def fenced_outputs(fenced: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``torch.empty`` and its kin give fenced memory full of NaN: what a kernel leaves unwritten shows too."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def empty(*sizes: Any, **options: Any) -> Tensor:
            made = make(*sizes, **options)
            if made.device.type != "cpu" or not made.is_contiguous():
                return made
            return fenced(made.fill_(math.nan) if made.is_floating_point() else made.fill_(-1))

        return empty

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
