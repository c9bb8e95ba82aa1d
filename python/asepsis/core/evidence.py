"""``asepsis_evidence.safetensors``: the arrays a report draws, kept beside what a run made.

===================  =======  ======  ===================================================================
name                 dtype    shape   what
===================  =======  ======  ===================================================================
``loss.steps``       int64    [T]     optimizer steps of the snapshots, increasing
``loss.values``      float32  [T, N]  loss of every row at each of them, in nats; NaN where there is none
``token.id``         int64    [M]     tokens whose word embeddings moved
``token.drift``      float32  [M]     how far, in the units of the embeddings
``token.frequency``  float32  [M]     how often each is expected in ten million tokens of clean text
``row.poisoned``     bool     [N]     the answer key, where an evaluation had one
===================  =======  ======  ===================================================================

A run keeps what it has; names that are missing were not recorded. Tokens go by id: their names stand in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from asepsis.errors import CheckpointError

EVIDENCE = "asepsis_evidence.safetensors"

Arrays = Mapping[str, NDArray[Any]]

_KINDS: dict[str, tuple[str, str]] = {  # dtype, and the letter of each dimension
    "loss.steps": ("int64", "T"),
    "loss.values": ("float32", "TN"),
    "token.id": ("int64", "M"),
    "token.drift": ("float32", "M"),
    "token.frequency": ("float32", "M"),
    "row.poisoned": ("bool", "N"),
}
_TOGETHER = ({"loss.steps", "loss.values"}, {"token.id", "token.drift"})


def moved_tokens(
    ids: NDArray[np.int64], drift: NDArray[np.floating[Any]], frequency: NDArray[np.floating[Any]] | None
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the tokens that moved, ``[M]`` each of the ``ids``, ``drift`` and ``frequency`` given."""
    found: dict[str, NDArray[Any]] = {
        "token.id": ids.astype(np.int64),
        "token.drift": drift.astype(np.float32),
    }
    if frequency is not None:
        found["token.frequency"] = frequency.astype(np.float32)
    return found


def write_evidence(folder: Path, arrays: Arrays) -> None:
    """Write the arrays into a folder; no file where there is none. A wrong name or shape is a fault of the caller."""
    _check(arrays, str(folder))
    if arrays:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / EVIDENCE)


def read_evidence(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays kept in a folder, none where there is no file.

    Raises
    ------
    CheckpointError
        The file is broken, or holds something else.
    """
    path = folder / EVIDENCE
    if not path.is_file():
        return {}
    try:
        with safe_open(str(path), framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # safetensors answers a header that lies with almost any of these
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; run the command that wrote it again"
        ) from error
    _check(found, str(path))
    return found


def _check(arrays: Arrays, where: str) -> None:
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        dtype, letters = _KINDS.get(name, ("", ""))
        if array.dtype.name != dtype or array.ndim != len(letters):
            raise CheckpointError(
                f"{where}: {name!r} of {array.dtype} {array.shape} is no evidence; wanted {_KINDS.get(name)}"
            )
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size or size == 0:
                raise CheckpointError(
                    f"{where}: {name!r} has {size} of {letter}, other arrays {sizes[letter]}"
                )
    for names in _TOGETHER:
        if 0 < len(names & set(arrays)) < len(names):
            raise CheckpointError(f"{where}: {', '.join(sorted(names))} belong together, one is missing")
    if "loss.steps" in arrays and (np.diff(arrays["loss.steps"]) <= 0).any():
        raise CheckpointError(f"{where}: the steps of the losses do not increase")
