"""A checkpoint written again, tensor by tensor, into a new folder: what an edit does not touch is copied bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asepsis.core.weights.files import Checkpoint
from asepsis.core.weights.folders import INDEX
from asepsis.core.weights.headers import StoredTensor
from asepsis.core.weights.write import SafetensorsWriter, copy_checkpoint_except
from asepsis.errors import CheckpointError, ModelError

Bytes = npt.NDArray[np.uint8]
#: Given a tensor and the bytes of its place in the new file, fill them.
Fill = Callable[[StoredTensor, Bytes], None]

_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Bytes that are copied at a time.
CHUNK = 1 << 26


def rewrite(source: Checkpoint, output: Path, fill: Fill) -> None:
    """Write the files of a checkpoint into an empty folder, with tensors as ``fill`` makes them.

    Names, shapes, dtypes and the division into files stay. Tensors are filled in name order.

    Raises
    ------
    CheckpointError
        The folder is not empty.
    ModelError
        A file cannot be mapped.
    """
    if any(output.iterdir()):
        raise CheckpointError(f"{output} is not empty; a checkpoint is written into a folder of its own")
    by_file: dict[str, list[StoredTensor]] = {}
    for tensor in source.tensors.values():
        by_file.setdefault(tensor.path.name, []).append(tensor)
    writers = {
        name: SafetensorsWriter(output / name, [(t.name, t.dtype, t.shape) for t in tensors])
        for name, tensors in by_file.items()
    }
    for tensor in source.tensors.values():
        fill(tensor, writers[tensor.path.name].region(tensor.name))
    if len(by_file) > 1 or "model.safetensors" not in by_file:
        content = {
            "metadata": {"total_size": sum(t.nbytes for t in source.tensors.values())},
            "weight_map": {t.name: t.path.name for t in source.tensors.values()},
        }
        (output / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # a manifest of ours would speak of the model as it was
    copy_checkpoint_except(source.folder, output, leave=("asepsis.json", "asepsis_rows.jsonl"))


def stored_bytes(tensor: StoredTensor) -> Bytes:
    """Map the bytes of a tensor, ``[nbytes]``, without reading them.

    Raises
    ------
    ModelError
        The file cannot be mapped, or ends before the tensor does.
    """
    if tensor.nbytes == 0:
        return np.empty(0, np.uint8)
    try:
        return np.asarray(np.memmap(tensor.path, np.uint8, "r", tensor.offset, (tensor.nbytes,)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{tensor.path}: {tensor.name} cannot be mapped: {error}; download it again"
        ) from error


def copy_stored(tensor: StoredTensor, region: Bytes) -> None:
    """Copy a tensor as it is."""
    region[:] = stored_bytes(tensor)


def rounded(values: Bytes, dtype: str, to: str) -> Bytes:
    """Return the bytes of floats in another dtype, rounded to nearest; as they are where it is the same."""
    if dtype == to:
        return values
    return as_tensor(values, dtype).to(_TORCH[to]).view(torch.uint8).numpy()


def as_tensor(values: Bytes, dtype: str) -> torch.Tensor:
    """Return bytes as a tensor of floats, copied: what is mapped cannot be written, and torch warns of that."""
    return torch.from_numpy(np.array(values)).view(_TORCH[dtype])


def check_finite(values: Bytes, dtype: str, where: str) -> None:
    """Raise ``ModelError`` where a float among these bytes is NaN or infinite."""
    if len(values) == 0:
        return
    low, high = as_tensor(values, dtype).aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ModelError(
            f"{where} holds values that are not finite; the model is broken: download it again, or train it again with a "
            "lower learning rate"
        )


def check_stored(tensor: StoredTensor) -> None:
    """Raise ``ModelError`` where a float of a tensor is NaN or infinite, a piece of it in memory at a time."""
    values = stored_bytes(tensor)
    for first in range(0, len(values), CHUNK):
        check_finite(values[first : first + CHUNK], tensor.dtype, f"{tensor.path.name}: {tensor.name}")
