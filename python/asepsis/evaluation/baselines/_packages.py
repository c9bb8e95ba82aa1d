"""The packages that baselines cluster with: asked for when a baseline runs, and not before."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

from asepsis.errors import MissingDependency


def package(name: str) -> Any:
    """Return a module of scikit-learn, or umap-learn.

    Raises
    ------
    MissingDependency
        It is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name) from error


def check_packages(names: Iterable[str]) -> None:
    """Raise ``MissingDependency`` where one is not installed, without importing any of them."""
    for name in names:
        top, _, _ = name.partition(".")
        if importlib.util.find_spec(top) is None or importlib.util.find_spec(name) is None:
            raise _missing(name)


def _missing(name: str) -> MissingDependency:
    what = "umap-learn" if name == "umap" else "scikit-learn"
    return MissingDependency(
        f"this baseline clusters with {what}, which is not installed: pip install 'asepsis[baselines]'"
    )
