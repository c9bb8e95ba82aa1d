"""Fused layers that read one input: found by watching one pass, computed together when the first of them is called.

That q, k and v read one tensor is written in the code of the module around them, not in the layers. So it is watched: layers
under one parent that were called one after the other with the very same tensor form a group. From then on the first of them
computes all and keeps the others' outputs until they are called with that tensor. A layer that is called with another one
computes for itself: a group that no longer holds costs time, never a wrong number. Nothing is learned after the one pass, so
a recomputation under gradient checkpointing does what its forward pass did.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any
from weakref import ref

import torch
from torch import Tensor

log = logging.getLogger("asepsis")

Together = Callable[[Sequence[Any], Tensor], "Sequence[Tensor] | None"]


class SharedInput:
    """Layers of one input, in the order in which they are called, and what the first of them made for the others."""

    def __init__(self, names: Sequence[str], layers: Sequence[Any]) -> None:
        self.names, self.layers = tuple(names), tuple(layers)
        self._of: tuple[Any, ...] = ()
        self._made: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # a copy of a model is between passes
        return {**self.__dict__, "_of": (), "_made": {}}

    def output(self, layer: Any, x: Tensor, together: Together) -> Tensor | None:
        """Return what ``layer`` makes of ``x``; None where it has to compute that alone."""
        place = next(i for i, one in enumerate(self.layers) if one is layer)
        if place == 0:
            self._made = {}
            # what is written into such a tensor leaves no trace
            outs = None if x.is_inference() else together(self.layers, x)
            if outs is None:
                return None
            self._of, self._made = (ref(x), *_state(x)), dict(enumerate(outs))
            return self._made.pop(0)
        if place not in self._made:
            return None
        if self._of[0]() is x and self._of[1:] == _state(x):
            return self._made.pop(place)
        self._made = {}
        _warn(self.names)
        return None


def groups(calls: Sequence[tuple[str, Any, Tensor, int]]) -> list[SharedInput]:
    """Return the groups in one pass: name, layer, input and the input's version of every call, in their order."""
    found = []
    for _, run in groupby(calls, lambda call: (id(call[2]), call[3], call[0].rpartition(".")[0])):
        names, layers, *_ = zip(*run, strict=True)
        # a layer called twice on one input is no two layers
        if len(names) > 1 and len({*names}) == len(names):
            found.append(SharedInput(names, layers))
    # nor is one that reads with others here and with others there
    often = [name for group in found for name in group.names]
    return [group for group in found if all(often.count(name) == 1 for name in group.names)]


def _state(x: Tensor) -> tuple[Any, ...]:
    kind = x.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return x._version, torch.is_grad_enabled(), autocast


@functools.cache
def _warn(names: tuple[str, ...]) -> None:
    log.warning(
        "%s read one input in the example and do not now: their outputs are computed in vain and once more; "
        "call asepsis.fuse without an example",
        ", ".join(names),
    )
