"""One launch of a kernel of multi-scale LoRA: arguments, constants, grid; made from tensors, run or only described.

The same functions make what runs and what ``shipped()`` lists, from tensors without memory, so the tests compile what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asepsis.kernels import _dropout
from asepsis.kernels._triton import _lora_kernels as kernels
from asepsis.kernels._triton import _lora_tiles as tiles
from asepsis.kernels._triton._lora_tiles import Rank, Tile
from asepsis.kernels._triton._shipped import Shipped

_SUM_BLOCK = 1024
_GROUP = 8
_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}


@dataclass(frozen=True)
class Mask:
    """Which elements of the layer's input are kept."""

    seed: Tensor
    limit: int
    inverse: float

    @classmethod
    def of(cls, seed: Tensor | None, dropout: float) -> Mask | None:
        """Return None where nothing is dropped."""
        if seed is None or dropout == 0.0:
            return None
        return cls(seed, _dropout.threshold(dropout), _dropout.inverse(dropout))


@dataclass(frozen=True)
class Launch:
    """Everything a launch needs."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int

    def run(self) -> None:
        """Launch on the current device; nothing, where there is no program to run."""
        if 0 not in self.grid:
            self.kernel[self.grid](
                **self.arguments, **self.constants, num_warps=self.warps, num_stages=self.stages
            )

    def shipped(self, label: str, **more: Any) -> Shipped:
        """Describe it as Triton's launcher specializes it: on 1, on what 16 divides, on what is absent."""
        plain = {parameter.name for parameter in self.kernel.params if parameter.do_not_specialize}
        types, constants, aligned = {}, dict(self.constants), []
        for name, value in self.arguments.items():
            whole = isinstance(value, int)
            if value is None or (whole and value == 1 and name not in plain):
                constants[name] = value
                continue
            types[name] = _TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if whole else "fp32"
            if isinstance(value, Tensor) or (whole and value % 16 == 0 and name not in plain):
                aligned.append(name)
        return Shipped(
            label=label,
            kernel=self.kernel,
            types=types,
            constants=constants,
            aligned=tuple(aligned),
            warps=self.warps,
            stages=self.stages,
            **more,
        )


def blocks(n: int, size: int) -> int:
    """Return how many blocks of ``size`` hold ``n``."""
    return -(-n // size)


def precision() -> str:
    """How float32 is multiplied: as torch is told to (``torch.set_float32_matmul_precision``)."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def shrink(
    x: Tensor, factor: Tensor, scale: Tensor, out: Tensor, mask: Mask | None, limit: int, *, masked: bool
) -> Launch:
    """``out = keep * x @ factor * scale``, factor ``[K, R]``, out ``[M, width]``; x unmasked unless ``masked``."""
    (m, k), r = x.shape, factor.shape[1]
    rank = Rank.of(r)
    tile = tiles.shrink(m, rank, x.element_size(), factor.element_size(), limit)
    arguments = {
        "x": x,
        "factor": factor,
        "scale": scale,
        "out": out,
        "seed": mask.seed if mask is not None and masked else None,
        "M": m,
        "K": k,
        "R": r,
        "stride_xm": x.stride(0),
        "stride_fk": factor.stride(0),
        "stride_fr": factor.stride(1),
        "stride_om": out.stride(0),
        "limit": 0 if mask is None else mask.limit,
        "inverse": 1.0 if mask is None else mask.inverse,
    }
    constants = {
        "WIDTH": rank.width,
        "RANK_A": rank.a,
        "RANK_B": rank.b,
        "BM": tile.m,
        "BK": tile.k,
        "EVEN": k % tile.k == 0,
        "DROPOUT": masked and mask is not None,
        "PRECISION": precision(),
    }
    grid = (blocks(m, tile.m), rank.groups)
    return Launch(kernels._multiscale_lora_shrink_kernel, grid, arguments, constants, tile.warps, tile.stages)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: Tensor,
    factor: Tensor,
    out: Tensor,
    mask: Mask | None,
    limit: int,
) -> Launch:
    """``out = x @ weight^T + bias + keep * (p @ factor^T)``, weight ``[N, K]``, factor ``[N, R]``."""
    (m, k), n, r = x.shape, len(weight), factor.shape[1]
    tile, rank = tiles.linear(m, n, x.element_size(), limit, dropout=mask is not None), Rank.of(r)
    arguments = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "p": p,
        "factor": factor,
        "out": out,
        "seed": None if mask is None else mask.seed,
        "M": m,
        "N": n,
        "K": k,
        "R": r,
        "stride_xm": x.stride(0),
        "stride_wn": weight.stride(0),
        "stride_wk": weight.stride(1),
        "stride_pm": p.stride(0),
        "stride_fn": factor.stride(0),
        "stride_fr": factor.stride(1),
        "stride_om": out.stride(0),
        "limit": 0 if mask is None else mask.limit,
    }
    constants = {
        "WIDTH": rank.width,
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
        "BR": rank.chunk,
        "GROUP": _GROUP,
        "EVEN": k % tile.k == 0,
        "BIAS": bias is not None,
        "DROPOUT": mask is not None,
        "PRECISION": precision(),
    }
    grid = (blocks(m, tile.m) * blocks(n, tile.n),)
    return Launch(kernels._multiscale_lora_linear_kernel, grid, arguments, constants, tile.warps, tile.stages)


def expand(p: Tensor, factor: Tensor, mask: Mask, out: Tensor, *, add: bool) -> Launch:
    """``out (+)= keep * (p @ factor^T)``, factor ``[N, R]``."""
    (m, n), r = out.shape, factor.shape[1]
    tile, rank = tiles.expand(out.element_size()), Rank.of(r)
    arguments = {
        "p": p,
        "factor": factor,
        "out": out,
        "seed": mask.seed,
        "M": m,
        "N": n,
        "R": r,
        "stride_pm": p.stride(0),
        "stride_fn": factor.stride(0),
        "stride_fr": factor.stride(1),
        "stride_om": out.stride(0),
        "limit": mask.limit,
    }
    constants = {
        "WIDTH": rank.width,
        "BM": tile.m,
        "BN": tile.n,
        "BR": rank.chunk,
        "ADD": add,
        "PRECISION": precision(),
    }
    grid = (blocks(m, tile.m), blocks(n, tile.n))
    return Launch(kernels._multiscale_lora_expand_kernel, grid, arguments, constants, tile.warps, tile.stages)


@dataclass(frozen=True)
class Cut:
    """How rows are summed in parts: ``parts`` of ``chunk`` rows before ``boundary``, the others from it to ``end``."""

    boundary: int
    end: int
    chunk: int
    parts: int


def gradient(
    x: Tensor,
    p: Tensor,
    partial: Tensor,
    rank: int,
    mask: Mask | None,
    first_column: int,
    cut: Cut,
    tile: Tile,
    *,
    rank_first: bool,
) -> Launch:
    """``partial[s] = (keep * x)^T @ p`` over the rows of part s, ``[R, D]`` where ``rank_first``, else ``[D, R]``."""
    d, shape = partial.shape[2 if rank_first else 1], Rank.of(rank)
    arguments = {
        "x": x,
        "p": p,
        "partial": partial,
        "seed": None if mask is None else mask.seed,
        "first_column": first_column,
        "D": d,
        "R": rank,
        "boundary": cut.boundary,
        "end": cut.end,
        "chunk": cut.chunk,
        "splits": cut.parts,
        "stride_xm": x.stride(0),
        "stride_pm": p.stride(0),
        "stride_ts": partial.stride(0),
        "stride_td": partial.stride(2 if rank_first else 1),
        "stride_tr": partial.stride(1 if rank_first else 2),
        "limit": 0 if mask is None else mask.limit,
    }
    constants = {
        "WIDTH": shape.width,
        "RANK_A": shape.a,
        "RANK_B": shape.b,
        "BM": tile.m,
        "BD": tile.n,
        "DROPOUT": mask is not None,
        "PRECISION": precision(),
    }
    grid = (blocks(d, tile.n), shape.groups, len(partial))
    return Launch(
        kernels._multiscale_lora_gradient_kernel, grid, arguments, constants, tile.warps, tile.stages
    )


def add_up(partial: Tensor, out: Tensor) -> Launch:
    """``out = sum_s partial[s]``, both contiguous."""
    n = out.numel()
    arguments = {
        "partial": partial,
        "out": out,
        "n": n,
        "stride": partial.stride(0),
        "splits": len(partial),
    }
    constants = {"BLOCK": _SUM_BLOCK}
    return Launch(kernels._multiscale_lora_sum_kernel, (blocks(n, _SUM_BLOCK),), arguments, constants, 4, 3)
