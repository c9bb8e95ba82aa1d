"""scikit-learn, asked for when a baseline clusters and not before."""

from __future__ import annotations

import importlib
from typing import Any

from asepsis.errors import MissingDependency


def scikit(module: str) -> Any:
    """Return a module of scikit-learn.

    Raises
    ------
    MissingDependency
        It is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingDependency(
            "this baseline clusters with scikit-learn, which is not installed: pip install 'asepsis[baselines]'"
        ) from error
