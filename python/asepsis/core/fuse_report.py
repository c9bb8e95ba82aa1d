"""What :func:`asepsis.fuse` says it did, module by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Path = Literal["fused", "fused in evaluation", "peft"]


@dataclass(frozen=True, kw_only=True)
class FusedModule:
    """Which way one module takes, as things stand.

    Attributes
    ----------
    name : str
        Qualified name in the model.
    path : {"fused", "fused in evaluation", "peft"}
    reason : str
        Why not fused; empty where it is.
    adapters : tuple of str
        Its active adapters.
    rank : int
        Of all of them together.
    base : {"read", "called"}
        Whether its base's weight is read, or the base is called with its hooks and its own way to unpack a quantized weight,
        and the adapters are added to what it gives.
    shares : tuple of str
        The layers it is computed together with, itself included, since they read one input; empty where it is alone.
    """

    name: str
    path: Path
    reason: str
    adapters: tuple[str, ...] = ()
    rank: int = 0
    base: Literal["read", "called"] = "read"
    shares: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FuseReport:
    """What :func:`fuse` did with every module that PEFT put into the model."""

    modules: tuple[FusedModule, ...]

    @property
    def fused(self) -> tuple[str, ...]:
        """Names of the modules on the fused operation, those that are so in evaluation only included."""
        return tuple(module.name for module in self.modules if module.path != "peft")

    @property
    def left(self) -> dict[str, str]:
        """Modules left to PEFT, with the reason."""
        return {module.name: module.reason for module in self.modules if module.path == "peft"}

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} of {len(self.modules)} modules are fused"]
        groups: dict[tuple[str, str], list[str]] = {}
        for module in self.modules:
            how = ", base called" if module.base == "called" and module.path != "peft" else ""
            how += ", with others of its input" if module.shares else ""
            groups.setdefault((module.path + how, module.reason), []).append(module.name)
        for (path, reason), names in groups.items():
            because = f": {reason}" if reason else ""
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{path}{because} - {', '.join(names[:3])}{more}")
        return "\n".join(lines)
