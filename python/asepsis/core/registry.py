"""A folder as a registry: each module in it that has no underscore holds one class, known by the file's name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from asepsis.errors import ConfigError


def listed(path: Iterable[str]) -> list[str]:
    """Return the names in a package's ``__path__``, sorted; ``base`` holds what the others inherit from."""
    names = (module.name for module in pkgutil.iter_modules(path))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def found(package: str, name: str, base: str, *, there: list[str]) -> Any:
    """Return the one class of ``package.name`` that inherits from the class ``base`` of ``package.base``.

    Raises
    ------
    ConfigError
        There is no such module, which lists those there are; or it holds no such class, or several.
    """
    if name not in there:
        raise ConfigError(f"no {base.lower()} called {name!r}; there are: {', '.join(there)}")
    parent = getattr(importlib.import_module(f"{package}.base"), base)
    module = importlib.import_module(f"{package}.{name}")
    kinds = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, parent) and v.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise ConfigError(f"{module.__name__} must hold exactly one {base}, found {len(kinds)}")
    return kinds[0]
