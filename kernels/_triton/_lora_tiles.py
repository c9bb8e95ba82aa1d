"""Which tiles a kernel of multi-scale LoRA is launched with: a function of shapes and of the device's shared memory.

Nothing is timed to choose them, so equal shapes give equal bits in every process. Every tile that can come out of here is
in ``shipped()`` of :mod:`asepsis.kernels._triton.multiscale_lora` and is compiled by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Shared memory a block may ask for, bytes, by compute capability; what is not listed gets the least of these.
SHARED = {(8, 0): 166_912, (8, 7): 166_912, (9, 0): 232_448, (10, 0): 232_448, (10, 3): 232_448}
_LEAST_SHARED = 101_376

#: Programs that are wanted at least, about one for each multiprocessor of the largest devices.
PROGRAMS = 132


@dataclass(frozen=True)
class Rank:
    """A rank as kernels see it: ``width`` columns with the padding, made ``a + b`` at a time, used ``chunk`` at a time."""

    width: int
    a: int
    b: int
    chunk: int

    @property
    def groups(self) -> int:
        return -(-self.width // (self.a + self.b))

    @classmethod
    def of(cls, rank: int) -> Rank:
        width = -(-rank // 16) * 16
        # beyond 128 the accumulators want more registers than there are, so wider ranks go in groups
        a = min(128, 1 << (width.bit_length() - 1))
        rest = width - a if a < 128 else 0
        return cls(width, a, 1 << (rest - 1).bit_length() if rest else 0, 16 if width % 32 else 32)


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a program's tile, and how it is launched."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def shared_limit(capability: tuple[int, int]) -> int:
    """Return the bytes of shared memory a block may have."""
    return SHARED.get(capability, _LEAST_SHARED)


def shrink(rows: int, rank: Rank, size: int, factor_size: int, limit: int) -> Tile:
    """Tile of the product that makes ``P``; sizes are those of an element of the rows and of the factor, bytes."""
    wide = rank.a + rank.b
    m = 64 if rows >= 64 * 128 else 32
    k = 64 if max(size, factor_size) == 2 else 32
    stage = k * (m * size + wide * factor_size)
    return Tile(m, wide, k, 4, _stages(stage, limit, 4))


def linear(rows: int, columns: int, size: int, limit: int, *, dropout: bool) -> Tile:
    """Tile of the product with the frozen weight."""
    if size == 4:
        return Tile(64, 64, 32, 4, 3)
    # the large tile fills three stages of Hopper's shared memory and spills on Ampere; with a mask it would on both
    if limit >= SHARED[9, 0] and not dropout and -(-rows // 128) * -(-columns // 256) >= PROGRAMS:
        return Tile(128, 256, 64, 8, 3)
    return Tile(128, 128, 64, 8, 3)


def expand(size: int) -> Tile:
    """Tile of the masked low-rank product."""
    return Tile(64, 64 if size == 4 else 128, 0, 4, 1)


def gradient(rank: Rank, size: int, limit: int) -> Tile:
    """Tile of the gradient of a factor: ``m`` rows at a time, ``n`` features."""
    m, n = (32, 64) if size == 4 else (64, 128)
    return Tile(m, n, 0, 8, _stages(m * (n + rank.a + rank.b) * size, limit, 3))


def splits(rows: int, columns: int, tile: Tile, rank: Rank) -> int:
    """How many parts the rows are cut into so that the device is filled; by shape alone, never by device or time."""
    blocks = -(-columns // tile.n) * rank.groups
    wanted = -(-2 * PROGRAMS // blocks)
    return max(1, min(wanted, 32, -(-rows // tile.m)))


def _stages(stage: int, limit: int, most: int) -> int:
    for stages in range(most, 2, -1):
        # a tenth is left for what the compiler adds: layout conversions and barriers
        if stages * stage <= 0.9 * limit:
            return stages
    return 2
