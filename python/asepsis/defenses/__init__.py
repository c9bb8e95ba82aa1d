"""The defenses: one file per paper. The folder is the registry.

A module of this folder that holds a subclass of :class:`~asepsis.defenses.base.Defense` is a defense, and its name
is the file's name.
"""

from __future__ import annotations

from typing import Any

from asepsis.core.registry import found, listed


def available() -> list[str]:
    """Return the names of all defenses, sorted."""
    return listed(__path__)


def load(name: str) -> Any:
    """Return the defense class called ``name``.

    Raises
    ------
    ConfigError
        If there is no such defense; the message lists those there are.
    """
    return found(__name__, name, "Defense", there=available())
