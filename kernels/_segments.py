"""Which elements of a flat arena belong to which tensor, as the reference and the GPU want to know it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asepsis.errors import DataError

# about the root of a large tensor's size: both stages of a sum add few terms, so float32 keeps its digits
PIECE = 4096


@dataclass(frozen=True, eq=False)
class Segments:
    """Which elements of an arena belong to which tensor, ready on the device; build once with :meth:`of`.

    Attributes
    ----------
    sizes
        Elements of each tensor, in arena order; ``E`` together.
    pieces, piece_sizes
        ``[n]`` int64, pieces of each tensor, and ``[sum(pieces)]`` int64, elements of each piece. A tensor is cut at
        every 4096th of its own elements.
    tiles
        ``[2, P]`` int64, first element and the one after the last of each tile, in arena order. Tiles are cut where a
        tensor ends and at every 4096th element of the *arena*, so that a whole tile begins where memory is aligned.
    tile_tensor, first_tile
        ``[P]`` int32, the tensor of each tile, and ``[n + 1]`` int32, the first tile of each tensor and ``P``.
    """

    sizes: tuple[int, ...]
    pieces: Tensor
    piece_sizes: Tensor
    tiles: Tensor
    tile_tensor: Tensor
    first_tile: Tensor

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Lay out tensors of these sizes on a device.

        Raises
        ------
        DataError
            There is no size, or one is not a positive integer.
        """
        sizes = tuple(sizes)
        if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
            raise DataError(f"sizes must be positive integers, one a tensor; got {sizes!r:.200}")
        elements = torch.tensor(sizes)
        pieces = (elements + (PIECE - 1)) // PIECE
        piece_sizes = torch.full((int(pieces.sum()),), PIECE)
        piece_sizes[pieces.cumsum(0) - 1] = elements - (pieces - 1) * PIECE

        ends = elements.cumsum(0)
        first_block = (ends - elements) // PIECE
        count = (ends - 1) // PIECE - first_block + 1
        first_tile = torch.cat((torch.zeros(1, dtype=torch.int64), count.cumsum(0)))
        tensor = torch.repeat_interleave(torch.arange(len(sizes)), count)
        block = torch.arange(len(tensor)) - first_tile[tensor] + first_block[tensor]
        tiles = torch.stack(
            (
                torch.maximum((ends - elements)[tensor], block * PIECE),
                torch.minimum(ends[tensor], (block + 1) * PIECE),
            )
        )
        made = cls(
            sizes,
            pieces.to(device),
            piece_sizes.to(device),
            tiles.to(device),
            tensor.to(torch.int32).to(device),
            first_tile.to(torch.int32).to(device),
        )
        if made.tiles.device.type == "cpu":
            made.tensor_of  # noqa: B018 - no step is to be slower than the others
        return made

    @property
    def elements(self) -> int:
        """``E``."""
        return sum(self.sizes)

    @functools.cached_property
    def tensor_of(self) -> Tensor:
        """``[E]`` int32, the tensor of each element. As large as an arena, and the Triton path does without."""
        index = torch.arange(len(self.sizes), dtype=torch.int32, device=self.tiles.device)
        elements = torch.tensor(self.sizes).to(self.tiles.device)
        return torch.repeat_interleave(index, elements, output_size=self.elements)
