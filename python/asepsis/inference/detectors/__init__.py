"""The detectors: one file per way to tell a triggered input. The folder is the registry.

A module of this folder that holds a subclass of :class:`~asepsis.inference.detectors.base.Detector` is a detector, and
its name is the file's name.
"""

from __future__ import annotations

from typing import Any

from asepsis.core.registry import found, listed


def available() -> list[str]:
    """Return the names of all detectors, sorted."""
    return listed(__path__)


def load(name: str) -> Any:
    """Return the detector class called ``name``.

    Raises
    ------
    ConfigError
        If there is no such detector; the message lists those there are.
    """
    return found(__name__, name, "Detector", there=available())
