"""Every way the kernels of multi-scale LoRA are launched on matrices a model has, for the tests to compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from asepsis.kernels._triton import _lora_launch as launch
from asepsis.kernels._triton import _lora_tiles as tiles
from asepsis.kernels._triton._lora_launch import Cut, Launch, Mask
from asepsis.kernels._triton._lora_tiles import Rank
from asepsis.kernels._triton._shipped import Shipped

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
# a multiple of 16 that is no power of two, the least, all one accumulator holds, more than one program's, no multiple of 16;
# three layers of one input, of rank 16 and 80
_RANKS = (80, 16, 128, 256, 100, 48, 240)
_CAPABILITIES = (80, 90)
Build = Callable[[int], Launch]


def shipped() -> list[Shipped]:
    """List the launches, those of one GPU after the other's: tiles may differ."""
    return [
        entry
        for capability in _CAPABILITIES
        for label, build, more in _builds()
        for entry in [_describe(label, build(tiles.shared_limit(divmod(capability, 10))), capability, **more)]
    ]


def _describe(label: str, made: Launch, capability: int, *, tf32: bool = False, wide: bool = True) -> Shipped:
    constants = made.constants
    if tf32:
        made = replace(made, constants={**constants, "PRECISION": "tf32"})
    rows = made.arguments.get("x", made.arguments.get("p"))
    whole = rows is None or (rows.dtype == _FP32 and not tf32)
    # Hopper's own matrix instructions take 64 rows; a tile of 32 is for few rows, which no matrix unit makes faster
    small = capability >= 90 and constants.get("BM") == 32
    return made.shipped(label, capabilities=(capability,), tensor_cores=not (whole or small), wide_loads=wide)


def _builds() -> Iterator[tuple[str, Build, dict[str, bool]]]:
    for rank in _RANKS:
        yield f"rank {rank}", _shrink(rank), {}
        yield f"dA rank {rank}", _gradient(rank), {}
    yield "few rows", _shrink(80, rows=2048), {}
    yield "bf16 factor", _shrink(80, factor=_BF16), {}
    yield "dP", _shrink(80, back=True), {}
    yield "dropout", _shrink(80, dropout=True), {}
    yield "dropout few rows", _shrink(80, rows=2048, dropout=True), {}
    yield "fp16", _shrink(80, dtype=_FP16), {}
    yield "fp32", _shrink(80, dtype=_FP32), {}
    yield "fp32 as tf32", _shrink(80, dtype=_FP32), {"tf32": True}
    yield "odd features", _shrink(80, features=4097), {"wide": False}
    yield "y", _linear(80), {}
    yield "y rank 100", _linear(100), {}
    yield "y 768", _linear(80, features=768), {}
    yield "y small", _linear(80, rows=1024, features=768), {}
    yield "y fp16", _linear(80, dtype=_FP16), {}
    yield "y fp32", _linear(80, dtype=_FP32), {}
    yield "y fp32 as tf32", _linear(80, dtype=_FP32), {"tf32": True}
    yield "dx", _linear(80, back=True), {}
    yield "dx dropout", _linear(80, back=True, dropout=True), {}
    yield "dx small", _linear(80, rows=1024, features=768, back=True), {}
    yield "add", _expand(80), {}
    yield "write", _expand(80, add=False), {}
    yield "fp32", _expand(80, dtype=_FP32), {}
    yield "dB", _gradient(80, rank_first=False), {}
    yield "dA dropout", _gradient(80, dropout=True), {}
    yield "dA into bf16", _gradient(80, out=_BF16), {}
    yield "dA fp16", _gradient(80, dtype=_FP16), {}
    yield "dA fp32", _gradient(80, dtype=_FP32), {}
    yield "fp32", _add_up(_FP32), {}
    yield "bf16", _add_up(_BF16), {}


def _tensor(*shape: int, dtype: torch.dtype = _BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _mask(*, dropout: bool) -> Mask | None:
    return Mask.of(_tensor(dtype=torch.int64), 0.1) if dropout else None


def _shrink(
    rank: int,
    *,
    rows: int = 8192,
    features: int = 4096,
    dtype: torch.dtype = _BF16,
    factor: torch.dtype = _FP32,
    back: bool = False,
    dropout: bool = False,
) -> Build:
    taken = _tensor(features, rank, dtype=factor) if back else _tensor(rank, features, dtype=factor).t()
    x, out = _tensor(rows, features, dtype=dtype), _tensor(rows, Rank.of(rank).width, dtype=dtype)
    scale, mask = _tensor(rank, dtype=_FP32), _mask(dropout=dropout)
    return lambda limit: launch.shrink(x, taken, scale, out, mask, limit, masked=not back)


def _linear(
    rank: int,
    *,
    rows: int = 8192,
    features: int = 4096,
    dtype: torch.dtype = _BF16,
    back: bool = False,
    dropout: bool = False,
) -> Build:
    x, weight = _tensor(rows, features, dtype=dtype), _tensor(features, features, dtype=dtype)
    p, out = _tensor(rows, Rank.of(rank).width, dtype=dtype), _tensor(rows, features, dtype=dtype)
    factor = _tensor(rank, features, dtype=_FP32).t() if back else _tensor(features, rank, dtype=_FP32)
    bias, mask = None if back else _tensor(features, dtype=dtype), _mask(dropout=dropout)
    weight = weight.t() if back else weight
    return lambda limit: launch.linear(x, weight, bias, p, factor, out, mask, limit)


def _expand(rank: int, *, add: bool = True, dtype: torch.dtype = _BF16) -> Build:
    p, out = _tensor(8192, Rank.of(rank).width, dtype=dtype), _tensor(8192, 4096, dtype=dtype)
    mask = _mask(dropout=True)
    assert mask is not None
    return lambda _: launch.expand(p, _tensor(rank, 4096, dtype=_FP32).t(), mask, out, add=add)


def _gradient(
    rank: int,
    *,
    rank_first: bool = True,
    dtype: torch.dtype = _BF16,
    out: torch.dtype = _FP32,
    dropout: bool = False,
) -> Build:
    x, p = _tensor(8192, 4096, dtype=dtype), _tensor(8192, Rank.of(rank).width, dtype=dtype)
    partial = _tensor(9, *((rank, 4096) if rank_first else (4096, rank)), dtype=out)
    shape, cut, mask = Rank.of(rank), Cut(8192, 8192, 960, 9), _mask(dropout=dropout)

    def build(limit: int) -> Launch:
        tile = tiles.gradient(shape, x.element_size(), limit)
        return launch.gradient(x, p, partial, rank, mask, 0, cut, tile, rank_first=rank_first)

    return build


def _add_up(dtype: torch.dtype) -> Build:
    return lambda _: launch.add_up(_tensor(9, 80, 4096, dtype=_FP32), _tensor(80, 4096, dtype=dtype))
