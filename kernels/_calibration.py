"""What was measured on which GPU, and what ``backend="auto"`` makes of it: Triton only where it was no slower than torch.

A calibration lists, by the name of the GPU, operation and dtype, what each way of the operation cost at some sizes. One of
an operation's sizes is its *extent* (rows, positions, elements: what a batch changes), the others its *widths*, which
belong to the model. ``auto`` takes Triton on a GPU where

1. the GPU has a calibration at all,
2. widths within a factor of two of the asked ones were measured, in that dtype and equally aligned; the nearest count,
3. the extent is at least the fewest from which on Triton was no slower than torch in every measurement of these widths.

Everywhere else it takes torch. :func:`start` is that rule and asks nothing of the machine. ``make bench-gpu`` writes
calibrations, :func:`use` reads one; the one in the package is empty, so on a GPU nobody measured ``auto`` is torch, and
says so once as a warning.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from asepsis.errors import ConfigError

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a calibration says of an operation: sizes with the extent first; directions, all of which count; Triton's ways."""

    sizes: tuple[str, ...]
    directions: frozenset[str]
    ways: frozenset[str] = frozenset({"triton"})


OPERATIONS: Mapping[str, Operation] = {
    "multiscale_lora": Operation(
        sizes=("rows", "inputs", "outputs", "rank"),
        directions=frozenset({"forward", "backward"}),
        ways=frozenset({"fused", "accumulate"}),
    ),
    # outputs and ranks of all layers together
    "grouped_lora": Operation(sizes=("rows", "inputs", "outputs", "rank"), directions=frozenset({"both"})),
    "gradient_alignment": Operation(sizes=("elements",), directions=frozenset({"update"})),
    "linear_sample_loss": Operation(
        sizes=("positions", "width", "classes"),
        directions=frozenset({"frozen output layer", "trained output layer"}),
    ),
}

#: Widths whose remainder decides which code runs: a measurement on one side says nothing about the other.
ALIGNED: Mapping[str, int] = {"inputs": 16, "outputs": 16, "width": 64}

#: Names a calibration file for processes that cannot call :func:`use`.
VARIABLE = "ASEPSIS_CALIBRATION"

Times = dict[str, dict[str, float]]
"""Direction to way to microseconds; the way ``"reference"`` is torch."""

_SHIPPED = Path(__file__).with_name("calibration.json")
_logger = logging.getLogger("asepsis")
_revisions = itertools.count()


@dataclass
class Measured:
    """What is known of one kind of GPU."""

    gemm_ratio: dict[str, float] = field(default_factory=dict)
    """Share of the library's speed a Triton product reaches, by dtype."""
    times: dict[tuple[str, str, tuple[int, ...]], dict[int, Times]] = field(default_factory=dict)
    """Operation, dtype and widths to extent to times."""


class Table:
    """Calibrations by name of the GPU, later ones over earlier ones."""

    def __init__(self) -> None:
        self.path: str | None = None
        self.revision = next(_revisions)
        self.devices: dict[str, Measured] = {}

    def add(self, content: Any, source: str) -> None:
        """Take in the content of a calibration file, all of it or nothing.

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
            read = [(device["device"], _read(device)) for device in content["devices"]]
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            if isinstance(problem, ConfigError):
                raise
            raise ConfigError(
                f"{source} is no calibration ({type(problem).__name__}: {problem}); `make bench-gpu` writes one"
            ) from problem
        for name, new in read:
            known = self.devices.setdefault(name, Measured())
            known.gemm_ratio |= new.gemm_ratio
            for key, by_extent in new.times.items():
                for extent, times in by_extent.items():
                    known.times.setdefault(key, {}).setdefault(extent, {}).update(times)
        self.revision = next(_revisions)

    def nearest(
        self, device: str, operation: str, dtype: str, widths: tuple[int, ...]
    ) -> dict[int, Times] | None:
        """Return the complete measurements, by extent, of the nearest widths within a factor of two; None without."""
        found: list[tuple[float, dict[int, Times]]] = []
        names = OPERATIONS[operation].sizes[1:]
        for (of, kind, measured), by_extent in self.devices.get(device, Measured()).times.items():
            if (of, kind) != (operation, dtype):
                continue
            apart = [abs(math.log2(a / b)) for a, b in zip(widths, measured, strict=True)]
            alike = all(
                (a % ALIGNED.get(name, 1) == 0) == (b % ALIGNED.get(name, 1) == 0)
                for name, a, b in zip(names, widths, measured, strict=True)
            )
            complete = {extent: times for extent, times in by_extent.items() if _complete(operation, times)}
            if alike and complete and max(apart, default=0.0) <= 1:
                found.append((sum(apart), complete))
        return min(found, key=lambda pair: pair[0])[1] if found else None


def start(device: str, table: Table, operation: str, dtype: str, widths: tuple[int, ...]) -> int | str:
    """Return the fewest extent from which ``auto`` takes Triton on this GPU, or one clause that says why it never does."""
    if device not in table.devices:
        return f"its kernels were never measured on {device}; `make bench-gpu` in the source tree does it"
    measured = table.nearest(device, operation, dtype, widths)
    if measured is None:
        return f"nothing like this size was measured on {device} in {dtype}"
    first: int | None = None
    for extent in sorted(measured, reverse=True):
        ours, torchs = totals(measured[extent])
        if ours > torchs:
            break
        first = extent
    return f"torch was measured to be faster on {device}" if first is None else first


def totals(times: Times) -> tuple[float, float]:
    """Return the least Triton's ways take over all directions, and what torch takes."""
    ours = sum(min(us for way, us in ways.items() if way != "reference") for ways in times.values())
    return ours, sum(ways["reference"] for ways in times.values())


def refusal(
    operation: str, dtype: torch.dtype, device: torch.device, extent: int, *widths: int
) -> str | None:
    """Return why ``auto`` leaves this call to torch; None where Triton was measured to be no slower."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    first = _start_here(operation, str(dtype).removeprefix("torch."), device.index or 0, *widths)
    if isinstance(first, str):
        return first
    return "torch was measured to be faster on so little" if extent < first else None


@functools.cache
def table() -> Table:
    """Return the process's table: the one in the package, and over it the file that ``ASEPSIS_CALIBRATION`` names."""
    made = Table()
    made.add(json.loads(_SHIPPED.read_text(encoding="utf-8")), _SHIPPED.name)
    named = os.environ.get(VARIABLE)
    if named:
        _add_file(made, named)
    return made


def use(path: str | Path) -> None:
    """Let a calibration that ``make bench-gpu`` wrote decide in this process from now on, over what was known before.

    Raises
    ------
    ConfigError
        The file cannot be read or is no calibration; nothing changes.
    """
    _add_file(table(), path)


@functools.cache
def device_name(index: int) -> str:
    """Return the name a calibration knows a GPU by."""
    return torch.cuda.get_device_name(index)


# torch.compile cannot trace a question to the driver; the sizes it asks with are numbers, and so is the answer
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _start_here(operation: str, dtype: str, index: int, *widths: int) -> int | str:
    return _known_start(operation, dtype, device_name(index), widths, table().revision)


@functools.cache  # asked on every call
def _known_start(
    operation: str, dtype: str, device: str, widths: tuple[int, ...], revision: int
) -> int | str:
    if device not in table().devices:
        _warn(device)
    return start(device, table(), operation, dtype, widths)


@functools.cache
def _warn(device: str) -> None:
    _logger.warning(
        "Triton kernels were never measured on %s, so backend='auto' takes torch there. `make bench-gpu` in the source "
        "tree checks and measures them and writes calibrations; asepsis.kernels.use_calibration(path) or %s=path reads "
        "one; backend='triton' runs them unmeasured",
        device,
        VARIABLE,
    )


def _add_file(to: Table, path: str | Path) -> None:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read as a calibration: {problem}") from problem
    to.add(content, str(path))
    to.path = str(path)


def _read(device: Any) -> Measured:
    read = Measured({dtype: float(ratio) for dtype, ratio in device["gemm_ratio"].items()})
    for row in device["measured"]:
        of = OPERATIONS[row["operation"]]
        extent, *widths = (int(row["sizes"][name]) for name in of.sizes)
        times = {way: float(us) for way, us in row["us"].items()}
        if not all(0 < value < math.inf for value in (extent, *widths, *times.values())):
            raise ValueError(f"sizes and times must be positive and finite, got {row!r:.300}")
        if row["direction"] not in of.directions or not times.keys() <= of.ways | {"reference"}:
            raise ValueError(f"no direction {row['direction']!r} or one of the ways {', '.join(times)}")
        by_extent = read.times.setdefault((row["operation"], row["dtype"], tuple(widths)), {})
        by_extent.setdefault(extent, {})[row["direction"]] = times
    return read


def _complete(operation: str, times: Times) -> bool:
    measured = times.keys() == OPERATIONS[operation].directions
    return measured and all("reference" in ways and len(ways) > 1 for ways in times.values())
