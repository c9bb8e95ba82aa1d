"""The k lowest values, with ties and NaN settled.

Contract: ``bottom_k(x [N], k) == argsort(x, stable=True)[:k]`` as int64, on every device and every CPU. The
order is total: values ascend, -0.0 equals +0.0, every NaN comes after +inf, ties go to the lower index.
``torch.topk`` and ``numpy.argpartition`` promise nothing about ties, and on losses, where thousands are
exactly zero, the ties decide.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from asepsis.errors import DataError
from asepsis.kernels._dispatch import Backend, select

_HALVES: Final[dict[torch.dtype, Literal["float16", "bfloat16"]]] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def bottom_k(values: Tensor, k: int, *, backend: Backend = "auto") -> Tensor:
    """Indices of the ``k`` lowest values, ascending; ties by index, NaN last.

    Parameters
    ----------
    values
        ``[N]``, any floating dtype.
    k
        How many, 0 to ``N``.
    backend
        ``"native"`` is the Rust core, on as many threads as torch uses: CPU tensors of float32, float16 and bfloat16,
        read once and in place. ``"reference"`` sorts with torch.

    Returns
    -------
    Tensor
        ``[k]`` int64, on the device of ``values``.

    Raises
    ------
    DataError
        ``values`` is not 1-D or not floating, or ``k`` is not in ``0..N``.
    BackendError
        The backend that was asked for cannot run on ``values``.
    """
    if values.dim() != 1 or not values.is_floating_point():
        raise DataError(f"values must be a 1-D floating tensor, got {values.dtype} {tuple(values.shape)}")
    if not 0 <= k <= values.numel():
        raise DataError(f"k must lie in 0..{values.numel()}, the number of values, got {k}")
    path = select("bottom_k", backend, {"native": _native_refusal(values), "reference": None})
    return (_native if path == "native" else _reference)(values.detach(), k)


def _reference(values: Tensor, k: int) -> Tensor:
    return torch.argsort(values, stable=True)[:k]


def _native(values: Tensor, k: int) -> Tensor:
    from asepsis import _native

    threads = torch.get_num_threads()
    dtype = _HALVES.get(values.dtype)
    if dtype is None:
        return torch.from_numpy(_native.bottom_k(values.contiguous().numpy(), k, threads=threads))
    bits = values.contiguous().view(torch.int16).numpy().view(np.uint16)
    return torch.from_numpy(_native.bottom_k(bits, k, dtype=dtype, threads=threads))


def _native_refusal(values: Tensor) -> str | None:
    if values.device.type != "cpu":
        return f"values are on {values.device}, the Rust core reads CPU memory (values.cpu())"
    if values.dtype not in (torch.float32, *_HALVES):
        return f"values are {values.dtype} and the Rust core orders float32, float16 and bfloat16 (values.float())"
    return None
