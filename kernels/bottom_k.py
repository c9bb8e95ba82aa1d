"""The k lowest values, with ties and NaN settled.

Contract: ``bottom_k(x [N], k) == argsort(x, stable=True)[:k]`` as int64, on every device and every CPU. The
order is total: values ascend, -0.0 equals +0.0, every NaN comes after +inf, ties go to the lower index.
``torch.topk`` and ``numpy.argpartition`` promise nothing about ties, and on losses, where thousands are
exactly zero, the ties decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asepsis.errors import DataError
from asepsis.kernels._dispatch import Backend, select


def bottom_k(values: Tensor, k: int, *, backend: Backend = "auto") -> Tensor:
    """Indices of the ``k`` lowest values, ascending; ties by index, NaN last.

    Parameters
    ----------
    values
        ``[N]``, any floating dtype.
    k
        How many, 0 to ``N``.
    backend
        ``"native"`` is the Rust core, on as many threads as torch uses: CPU tensors of at most 32 bits, read once;
        float32 in place. ``"reference"`` sorts with torch.

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

    array = values.to(torch.float32).contiguous().numpy()
    return torch.from_numpy(_native.bottom_k(array, k, threads=torch.get_num_threads()))


def _native_refusal(values: Tensor) -> str | None:
    if values.device.type != "cpu":
        return f"values are on {values.device}, the Rust core reads CPU memory (values.cpu())"
    if values.dtype == torch.float64:
        return "values are float64 and the Rust core orders float32 (values.float() if its precision will do)"
    return None
