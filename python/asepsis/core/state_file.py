"""The state of a run in one file: a tree of plain values, arrays and known records, as safetensors with JSON inside.

Numbers, words and the shape of the tree go to the file's metadata as JSON, arrays and tensors to its tensors. The file's
name holds a digest of all its bytes, so one that was cut short or altered anywhere is told from a whole one; nothing in
it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asepsis.core.folders import to_disk
from asepsis.core.phases import Continued, Losses, Trained, Weights
from asepsis.core.purge import Purged
from asepsis.core.quality import Quality
from asepsis.errors import CheckpointError

_FORMAT = "asepsis state 1"
_NAME = re.compile(r"state-(\d{8})-([0-9a-f]{32})\.safetensors")
_CHUNK = 1 << 22
_RECORDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Continued, Losses, Purged, Quality, Trained, Weights)
}


def states(folder: Path) -> list[Path]:
    """Return the state files of a folder, the newest first; whether they are whole is not looked at."""
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()] if folder.is_dir() else []
    found = [(int(match[1]), path.name, path) for path, match in named if match]
    return [path for _, _, path in sorted(found, reverse=True)]


def write_state(folder: Path, number: int, tree: Any) -> Path:
    """Write a tree as state ``number`` of a folder; the file appears once all of it is on the disk.

    Parameters
    ----------
    tree
        None, bool, int, float, str, lists, tuples and dicts with names for keys of these; numpy arrays, torch tensors,
        and the records that answer requests.

    Raises
    ------
    CheckpointError
        The file cannot be written, or the tree holds something else.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(tree, tensors), allow_nan=False)
    scratch = folder / f".state-{number:08d}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(scratch), metadata={"format": _FORMAT, "tree": text})
        to_disk(scratch)
        path = folder / f"state-{number:08d}-{_digest(scratch)}.safetensors"
        scratch.replace(path)
        to_disk(folder)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        raise CheckpointError(f"the state of the run cannot be written to {folder}: {error}") from error
    return path


def read_state(path: Path) -> Any:
    """Return the tree of a file that :func:`write_state` wrote, tensors in CPU memory.

    Raises
    ------
    CheckpointError
        The file is not as it was written, or cannot be read.
    """
    match = _NAME.fullmatch(path.name)
    try:
        if match is None or _digest(path) != match[2]:
            raise CheckpointError(f"{path} is not as it was written: its bytes do not match its name")
        with safe_open(str(path), framework="pt") as file:
            settings = file.metadata() or {}
            if settings.get("format") != _FORMAT:
                raise CheckpointError(f"{path}: format {settings.get('format')!r} is not {_FORMAT!r}")
            return _unpacked(json.loads(settings["tree"]), file)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as the state of a run: {error}") from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, np.ndarray):
        return {"array": _kept(torch.from_numpy(np.array(value)), tensors)}
    if isinstance(value, Tensor):
        # a copy: two names for the same memory cannot be written
        return {"tensor": _kept(value.detach().to("cpu", copy=True), tensors)}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(item, tensors) for key, item in value.items()}}
    if type(value) is _RECORDS.get(type(value).__name__):
        fields = {f.name: _packed(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"record": type(value).__name__, "fields": fields}
    raise CheckpointError(f"a {type(value).__name__} cannot be kept in the state of a run: {value!r}")


def _kept(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor.contiguous()
    return name


def _unpacked(value: Any, file: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, file) for item in value]
    if not isinstance(value, dict):
        return value
    if "record" in value:
        fields = {name: _unpacked(item, file) for name, item in value["fields"].items()}
        return _RECORDS[value["record"]](**fields)
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {key: _unpacked(item, file) for key, item in inner.items()}
    if kind == "tuple":
        return tuple(_unpacked(item, file) for item in inner)
    if kind == "float":
        return float(inner)
    tensor = file.get_tensor(inner)
    return tensor.numpy() if kind == "array" else tensor


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
