"""Which way a multi-scale LoRA layer is computed on a GPU: by measurement where there is one, else by a model.

Three ways compete. ``"fused"``: a Triton product with the low-rank one in its epilogue. ``"accumulate"``: a library product
with the low-rank one added in place, everything narrow in our kernels. ``"reference"``: torch alone.

The model is a roofline and has not been held against a GPU: the in-place addition reads and writes the output once more,
which costs 432 / K of the base product, K being the features that are summed over. So the fused way wins where a Triton
product reaches ``1 / (1 + 432 / K)`` of the library's; 0.85 is assumed. Few rows leave the device waiting for launches,
whoever launches, and float32 products are better left to the library.

``benches/gpu`` measures all of it and writes a calibration; :func:`use` reads one. The table in the package is empty.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from asepsis.errors import ConfigError

Route: TypeAlias = Literal["fused", "accumulate"]

SCHEMA = 1
_SHIPPED = Path(__file__).with_name("lora_routes.json")
_PASS_OVER_OUTPUT = 432.0  # features whose product takes as long as reading and writing the output once more
_ASSUMED_RATIO = 0.85
_FEWEST_ROWS = 1024


@dataclass(frozen=True)
class Plan:
    """How one layer is computed: ``refusal`` says why torch alone is expected to be faster, None where it is not."""

    forward: Route
    backward: Route
    refusal: str | None
    source: Literal["measured", "modelled"]


@dataclass(frozen=True)
class Layer:
    """What decides: rows, in and out features, rank, compute dtype by name, capability, whether a mask is drawn."""

    rows: int
    inputs: int
    outputs: int
    rank: int
    dtype: str
    capability: tuple[int, int]
    dropout: bool = False

    @property
    def odd(self) -> bool:
        """Whether rows of a matrix are not aligned: loads get narrow, and the fused kernel spills registers."""
        return self.inputs % 16 != 0 or self.outputs % 16 != 0

    def key(self) -> tuple[int, int, int, int]:
        """Rows and rank by the next power of two: a table has few entries."""
        return _power(self.rows), self.inputs, self.outputs, _power(self.rank)


class Table:
    """Calibrations by capability and dtype, later ones over earlier ones."""

    def __init__(self) -> None:
        self.path: str | None = None
        self._ratios: dict[tuple[tuple[int, int], str], float] = {}
        self._times: dict[tuple[Any, ...], dict[str, float]] = {}

    def add(self, content: Any, source: str) -> None:
        """Take in the content of a calibration file.

        Raises
        ------
        ConfigError
            It is not one, or of another schema.
        """
        try:
            if content["schema"] != SCHEMA:
                raise ConfigError(
                    f"{source} has schema {content['schema']!r}, this version reads {SCHEMA}; run the calibration again"
                )
            ratios: dict[tuple[tuple[int, int], str], float] = {}
            times: dict[tuple[Any, ...], dict[str, float]] = {}
            for device in content["devices"]:
                major, minor = device["capability"]
                for dtype, ratio in device["gemm_ratio"].items():
                    ratios[(int(major), int(minor)), dtype] = float(ratio)
                for row in device["layers"]:
                    layer = Layer(
                        row["rows"], row["inputs"], row["outputs"], row["rank"], row["dtype"], (major, minor)
                    )
                    key = (*layer.key(), layer.dtype, layer.capability, row["direction"])
                    times[key] = {route: float(us) for route, us in row["us"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            if isinstance(problem, ConfigError):
                raise
            raise ConfigError(
                f"{source} is no calibration of LoRA routes ({type(problem).__name__}: {problem}); "
                "`python -m benches.gpu lora_routes` writes one"
            ) from problem
        self._ratios |= ratios
        self._times |= times

    def plan(self, layer: Layer) -> Plan:
        """Decide for one layer."""
        found = [
            self._times.get((*layer.key(), layer.dtype, layer.capability, direction))
            for direction in ("forward", "backward")
        ]
        if found[0] and found[1] and not (layer.dropout or layer.odd):
            return _by_time(found[0], found[1])
        ratio = self._ratios.get((layer.capability, layer.dtype), _ASSUMED_RATIO)
        ways: tuple[Route, Route] = _by_model(layer.inputs, ratio), _by_model(layer.outputs, ratio)
        if layer.odd:
            ways = "accumulate", "accumulate"
        return Plan(*ways, model_refusal(layer), "modelled")


def model_refusal(layer: Layer) -> str | None:
    """Return why the model expects torch alone to be faster on a layer; None where it does not."""
    # with a mask torch would draw it by a hundred integer operations and keep it
    if layer.dropout:
        return None
    if layer.dtype == "float32":
        return "in float32 the library's products are left alone (modelled, not measured)"
    if layer.rows < _FEWEST_ROWS:
        return "with few rows launches are what costs, and torch has the fewest (modelled, not measured)"
    return None


def _by_model(summed: int, ratio: float) -> Route:
    return "fused" if ratio >= 1 / (1 + _PASS_OVER_OUTPUT / summed) else "accumulate"


def _by_time(forward: dict[str, float], backward: dict[str, float]) -> Plan:
    ways: tuple[Route, Route] = ("fused", "accumulate")
    best = [min((w for w in ways if w in times), key=times.__getitem__) for times in (forward, backward)]
    ours = forward[best[0]] + backward[best[1]]
    torchs = forward.get("reference", ours) + backward.get("reference", ours)
    refusal = "torch alone was measured to be faster on this layer" if torchs < ours else None
    return Plan(best[0], best[1], refusal, "measured")


@functools.cache
def table() -> Table:
    """Return the process's table, which begins with the one in the package."""
    made = Table()
    made.add(json.loads(_SHIPPED.read_text(encoding="utf-8")), _SHIPPED.name)
    return made


def use(path: str | Path) -> None:
    """Let a calibration decide from now on, in this process.

    Raises
    ------
    ConfigError
        The file cannot be read or is no calibration.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read as a calibration of LoRA routes: {problem}") from problem
    table().add(content, str(path))
    table().path = str(path)
    plan.cache_clear()


@functools.lru_cache(maxsize=4096)
def plan(layer: Layer) -> Plan:
    """Decide for one layer; asked on every call, so remembered."""
    return table().plan(layer)


def layer_of(
    x: torch.Tensor, dtype: torch.dtype, lora_a: torch.Tensor, lora_b: torch.Tensor, *, dropout: bool
) -> Layer:
    """Describe the layer of one call; off the GPU, where nothing competes, as one of Hopper's."""
    # not asked while torch.compile traces, which looks at the other fields only
    known = x.is_cuda and not torch.compiler.is_compiling()
    capability = torch.cuda.get_device_capability(x.device) if known else (9, 0)
    rows = x.numel() // max(1, x.shape[-1])
    name = str(dtype).removeprefix("torch.")
    return Layer(rows, lora_a.shape[1], len(lora_b), len(lora_a), name, capability, dropout)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
