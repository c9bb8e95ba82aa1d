"""The detectors: one file per way to tell a triggered input. The folder is the registry.

A module of this folder that holds a subclass of :class:`~asepsis.inference.detectors.base.Detector` is a detector, and
its name is the file's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from asepsis.errors import ConfigError


def available() -> list[str]:
    """Return the names of all detectors, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def load(name: str) -> Any:
    """Return the detector class called ``name``.

    Raises
    ------
    ConfigError
        If there is no such detector; the message lists those there are.
    """
    if name not in available():
        raise ConfigError(f"no detector called {name!r}; there are: {', '.join(available())}")
    from asepsis.inference.detectors.base import Detector

    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Detector) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{module.__name__} must hold exactly one Detector, found {len(found)}")
    return found[0]
