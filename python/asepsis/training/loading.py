"""What another library makes of files that somebody else wrote: admitted first, bounded, and judged once it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from asepsis.core.foreign import foreign
from asepsis.core.weights.admission import admit
from asepsis.core.weights.files import Checkpoint
from asepsis.core.weights.find import cached, fetched
from asepsis.errors import ModelError

# what a new head and buffers may take beside the weights in the files: a quarter of a gigabyte in float32
_ROOM = 1 << 26


def folder_of(name: str, *, from_file: bool = False) -> Path:
    """Return the folder of a model: a folder, or a hub id.

    Parameters
    ----------
    name : str
        Path or hub id.
    from_file : bool
        The name comes from a file, not from the user: nothing is fetched for it.

    Raises
    ------
    ModelError
        There is no such folder, and no such model on the hub, or in its cache where the name comes from a file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith(("/", "./", "../", "~")):
        raise ModelError(f"cannot load {name}: no such folder")
    if from_file:
        return cached(name)
    try:
        return fetched(name)
    except ModelError as error:
        raise ModelError(f"cannot load {name}: {error}") from error


def load_admitted(auto: Any, folder: Path, name: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """Load the model of a folder that passed; return it with the names of tensors that the files lack.

    Parameters
    ----------
    auto : type
        ``AutoModelForCausalLM`` or the like.
    folder : Path
        Where it lies.
    name : str
        What the user calls it, for messages and for what is saved from it.
    options : dict
        More for ``from_pretrained``.

    Raises
    ------
    ModelError
        The folder may not be loaded, its configuration asks for a far larger model than its weights are, or a weight is
        NaN or infinite.
    """
    try:
        checkpoint = admit(folder)
    except ModelError as error:
        raise ModelError(f"cannot load {name}: {error}") from error
    _check_size(auto, checkpoint, name, options)
    with foreign(f"cannot load {name}"):
        model, loaded = auto.from_pretrained(
            str(folder),
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,  # a pickle checkpoint is refused, never read
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
    model.config._name_or_path = model.name_or_path = name
    check_finite(model, name)
    return model, sorted(loaded["missing_keys"])


def _check_size(auto: Any, checkpoint: Checkpoint, name: str, options: dict[str, Any]) -> None:
    """Build the model without memory and count: a configuration of a kilobyte can ask for a terabyte."""
    from transformers import AutoConfig

    with foreign(f"cannot load {name}"):
        config = AutoConfig.from_pretrained(
            str(checkpoint.folder), trust_remote_code=False, local_files_only=True, **options
        )
        with torch.device("meta"):
            empty = auto.from_config(config, trust_remote_code=False)
    wanted = sum({id(t): t.numel() for t in (*empty.parameters(), *empty.buffers())}.values())
    stored = sum(t.count for t in checkpoint.tensors.values())
    # quantized weights are packed, up to 32 values in one that is stored
    most = stored * (32 if checkpoint.config.get("quantization_config") else 1) + _ROOM
    if wanted > most:
        raise ModelError(
            f"cannot load {name}: its configuration asks for {wanted:,} values and its files hold {stored:,}; the two do not "
            "belong together"
        )


def check_finite(model: nn.Module, name: str) -> None:
    """Raise ``ModelError`` where a weight is NaN or infinite."""
    if (key := broken_weight(model)) is not None:
        raise ModelError(
            f"cannot load {name}: {key} holds values that are not finite; the model is broken: download it again"
        )


def broken_weight(model: nn.Module) -> str | None:
    """Return the name of a weight that is NaN or infinite somewhere; None where there is none."""
    for key, tensor in model.state_dict().items():
        if (
            not tensor.is_floating_point()
            or tensor.numel() == 0
            or tensor.is_meta
            or tensor.element_size() < 2
        ):
            continue
        low, high = tensor.detach().aminmax()
        if not (low.isfinite() and high.isfinite()):
            return key
    return None
