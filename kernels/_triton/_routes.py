"""Which way a multi-scale LoRA layer on Triton makes its wide products: by measurement where there is one, else by a model.

``"fused"``: a Triton product with the low-rank one in its epilogue. ``"accumulate"``: a library product with the low-rank
one added in place. Everything narrow is ours in both. Whether a layer goes to Triton at all is another question, and
:mod:`asepsis.kernels._calibration` answers it.

The model is a roofline and has not been held against a GPU: the in-place addition reads and writes the output once more,
which costs 432 / K of the base product, K being the features that are summed over. So the fused way wins where a Triton
product reaches ``1 / (1 + 432 / K)`` of the library's; 0.85 is assumed where no calibration says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from asepsis.kernels import _calibration
from asepsis.kernels._calibration import Table

Route: TypeAlias = Literal["fused", "accumulate"]

_PASS_OVER_OUTPUT = 432.0  # features whose product takes as long as reading and writing the output once more
_ASSUMED_RATIO = 0.85


@dataclass(frozen=True)
class Plan:
    """How one layer is computed."""

    forward: Route
    backward: Route
    source: Literal["measured", "modelled"]


@dataclass(frozen=True)
class Layer:
    """What decides: rows, in and out features, rank, compute dtype by name, name of the GPU, whether a mask is drawn."""

    rows: int
    inputs: int
    outputs: int
    rank: int
    dtype: str
    device: str
    dropout: bool = False

    @property
    def odd(self) -> bool:
        """Whether rows of a matrix are not aligned: loads get narrow, and the fused kernel spills registers."""
        return self.inputs % 16 != 0 or self.outputs % 16 != 0


def choose(layer: Layer, table: Table) -> Plan:
    """Decide for one layer; asks nothing of the machine."""
    if layer.odd:
        return Plan("accumulate", "accumulate", "modelled")
    widths = (layer.inputs, layer.outputs, layer.rank)
    measured = table.nearest(layer.device, "multiscale_lora", layer.dtype, widths)
    # a mask costs the fused way more than the other
    if measured and not layer.dropout:
        rows = max(layer.rows, 1)
        # log2 apart, without the logarithm
        times = measured[min(measured, key=lambda extent: max(extent / rows, rows / extent))]
        return Plan(_fastest(times["forward"]), _fastest(times["backward"]), "measured")
    known = table.devices.get(layer.device)
    ratio = _ASSUMED_RATIO if known is None else known.gemm_ratio.get(layer.dtype, _ASSUMED_RATIO)
    return Plan(_by_model(layer.inputs, ratio), _by_model(layer.outputs, ratio), "modelled")


def plan(layer: Layer) -> Plan:
    """Decide for one layer by what this process knows."""
    return _plan(layer, _calibration.table().revision)


@functools.lru_cache(maxsize=4096)  # asked on every call
def _plan(layer: Layer, revision: int) -> Plan:
    return choose(layer, _calibration.table())


def layer_of(x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, *, dropout: bool) -> Layer:
    """Describe the layer of one call with rows ``[M, K]``."""
    device = _calibration.device_name(x.device.index or 0) if x.is_cuda else x.device.type
    dtype = str(x.dtype).removeprefix("torch.")
    return Layer(len(x), lora_a.shape[1], len(lora_b), len(lora_a), dtype, device, dropout)


def _by_model(summed: int, ratio: float) -> Route:
    return "fused" if ratio >= 1 / (1 + _PASS_OVER_OUTPUT / summed) else "accumulate"


def _fastest(times: dict[str, float]) -> Route:
    ways: tuple[Route, Route] = ("fused", "accumulate")
    return min((way for way in ways if way in times), key=times.__getitem__)
