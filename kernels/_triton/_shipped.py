"""One way in which a kernel is launched: what a compiler needs to know about it, without tensors or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """An entry of a module's ``shipped()``.

    Attributes
    ----------
    label
        What tells this entry from the kernel's others.
    kernel
        The ``triton.jit`` function.
    types
        Triton's name of the type of each argument that is no constant: ``"*bf16"``, ``"i32"``, ``"fp32"``.
    constants
        Value of each compile-time constant.
    aligned
        Arguments the launch specializes on being divisible by 16: pointers, and those strides and sizes that are.
        Code without these is other code than what runs.
    warps, stages
        As launched.
    tensor_cores
        Whether the code must hold matrix instructions: HMMA on sm_80, HGMMA on sm_90.
    wide_loads
        Whether the code must hold loads of 16 bytes.
    capabilities
        Where it is launched: 80, 90 or both.
    """

    label: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    tensor_cores: bool = False
    wide_loads: bool = False
    capabilities: tuple[int, ...] = (80, 90)
