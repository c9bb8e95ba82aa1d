"""Two versions of a tensor mixed element by element: a share of the tuned one kept, the rest from the reference.

Contract: element ``e`` of a tensor has a lane of 16 bits, the ``e % 4``-th from the low end of
``hash(seed, key, e // 4)``, and is kept from the tuned version when the lane is below
``floor(65536 reserve_ratio + 0.5)``; otherwise it is the reference's. The hash is SplitMix64's output function, entered
at the place that seed and key name. Bits are copied and nothing is computed from them, so any dtype of 1, 2, 4 or 8
bytes will do, NaN included. What is kept depends on neither order, parts nor threads; what a smaller ratio keeps, a
larger one keeps too. Every path gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from asepsis.errors import ConfigError, DataError
from asepsis.kernels._dispatch import Backend, select
from asepsis.kernels._matrices import Bytes

_ALL = 1 << 16
_STRIDE = np.uint64(0x9E3779B97F4A7C15)
# elements that the reference holds lanes of at a time
_BLOCK = 1 << 20


def mix(
    reference: Bytes,
    tuned: Bytes,
    out: Bytes,
    *,
    item_size: int,
    seed: int,
    key: int,
    reserve_ratio: float,
    start: int = 0,
    backend: Backend = "auto",
) -> int:
    """Fill ``out`` with a random share of ``tuned`` and the rest of ``reference``.

    Parameters
    ----------
    reference, tuned, out
        Bytes of a tensor or of a part of it, contiguous uint8 ``[N * item_size]``. ``out`` shares no memory with the
        others.
    item_size
        Bytes of an element: 1, 2, 4 or 8.
    seed, key
        Which mask, each in ``[0, 2^64)``: ``key`` tells tensors apart, see :func:`tensor_key`.
    reserve_ratio
        Share kept of ``tuned``, in [0, 1], to the nearest 1/65536. 0 and 1 are copies.
    start
        Index in its tensor of the first element here.
    backend
        ``"native"`` is the Rust core, on as many threads as torch uses; ``"reference"`` is numpy.

    Returns
    -------
    int
        Elements kept of ``tuned``, by the mask; a kept element may be equal in both.

    Raises
    ------
    ConfigError
        A setting lies outside its bounds.
    DataError
        The three differ in length, end within an element, or are not such bytes.
    """
    if not 0 <= reserve_ratio <= 1:
        raise ConfigError(f"reserve_ratio must lie in [0, 1], got {reserve_ratio!r}")
    for name, value in (("seed", seed), ("key", key), ("start", start)):
        if not 0 <= value < 1 << 64:
            raise ConfigError(f"{name} must lie in [0, 2^64), got {value!r}")
    if item_size not in (1, 2, 4, 8):
        raise ConfigError(f"item_size must be one of 1, 2, 4, 8, got {item_size!r}")
    bound = math.floor(reserve_ratio * _ALL + 0.5)
    if select("mix", backend, {"native": None, "reference": None}) == "native":
        from asepsis import _native

        return _native.mix(
            reference,
            tuned,
            out,
            item_size=item_size,
            seed=seed,
            key=key,
            kept_of_65536=bound,
            start=start,
            threads=torch.get_num_threads(),
        )
    return _reference(reference, tuned, out, item_size, seed, key, bound, start)


def tensor_key(name: str) -> int:
    """Return the key of the tensor called ``name``, the same on every machine."""
    import hashlib

    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _reference(
    reference: Bytes, tuned: Bytes, out: Bytes, item_size: int, seed: int, key: int, bound: int, start: int
) -> int:
    for name, part in (("reference", reference), ("tuned", tuned)):
        if part.shape != out.shape or part.ndim != 1 or len(part) % item_size:
            raise DataError(
                f"{name} must be the bytes of a tensor, uint8[N * {item_size}] like out {out.shape}, got {part.shape}"
            )
    n, kept = len(out) // item_size, 0
    for first in range(0, n, _BLOCK):
        last = min(first + _BLOCK, n)
        keep = lanes(seed, key, start + first, last - first) < bound
        at = slice(first * item_size, last * item_size)
        # [elements, bytes]
        p, f = reference[at].reshape(-1, item_size), tuned[at].reshape(-1, item_size)
        out[at].reshape(-1, item_size)[:] = np.where(keep[:, None], f, p)
        kept += int(keep.sum())
    return kept


def lanes(seed: int, key: int, start: int, n: int) -> npt.NDArray[np.uint16]:
    """Return the lanes of elements ``start`` to ``start + n`` of a tensor, ``[n]``: what :func:`mix` compares."""
    origin = _scramble(np.uint64(seed) ^ _scramble(np.array([key], np.uint64)))
    words = np.arange(start // 4, (start + n + 3) // 4, dtype=np.uint64)
    bits = _scramble(origin + words * _STRIDE)  # [words]
    fours = bits[:, None] >> np.array([0, 16, 32, 48], np.uint64)
    return fours.astype(np.uint16).ravel()[start % 4 :][:n]


def _scramble(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 on arrays, whose products wrap."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
