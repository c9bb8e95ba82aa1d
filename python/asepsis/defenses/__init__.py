"""The defenses: one file per paper. The folder is the registry.

A module of this folder that holds a subclass of :class:`~asepsis.defenses.base.Defense` is a defense, and its name
is the file's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from asepsis.errors import ConfigError


def available() -> list[str]:
    """Return the names of all defenses, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def load(name: str) -> Any:
    """Return the defense class called ``name``.

    Raises
    ------
    ConfigError
        If there is no such defense; the message lists those there are.
    """
    if name not in available():
        raise ConfigError(f"no defense called {name!r}; there are: {', '.join(available())}")
    from asepsis.defenses.base import Defense

    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Defense) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{module.__name__} must hold exactly one Defense, found {len(found)}")
    return found[0]
