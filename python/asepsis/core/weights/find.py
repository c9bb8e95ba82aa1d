"""From what a user calls a model to a folder with its safetensors."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asepsis.data.packaged import DEMO_PREFIX, PackagedModel, packaged_model
from asepsis.errors import ModelError

_READ = ("*.json", "model*.safetensors", "adapter_model.safetensors", "*.txt", "*.model", "*.jinja")


@contextlib.contextmanager
def find_checkpoint(model: str | Path) -> Iterator[Path]:
    """Yield the folder of a model: a folder, ``demo:encoder``, ``demo:causal[:LAYERS]`` or a cached hub id.

    The packaged GGUF model is written out as float32 safetensors, into a folder that lasts as long as the context.
    Nothing is downloaded.

    Raises
    ------
    ModelError
        There is no such folder, packaged model or cached model.
    MissingDependency
        The package that holds a demo model is not installed.
    """
    name = str(model)
    if name.startswith(DEMO_PREFIX):
        kind, _, layers = name.removeprefix(DEMO_PREFIX).partition(":")
        packaged = packaged_model(DEMO_PREFIX + kind)
        if layers and (not layers.isdecimal() or int(layers) < 1):
            raise ModelError(f"{name}: what follows the second colon is a number of layers, got {layers!r}")
        if packaged.gguf_file is None:
            yield packaged.path
            return
        with tempfile.TemporaryDirectory(prefix="asepsis-") as scratch:
            _write_out(packaged, Path(scratch), int(layers) if layers else None)
            yield Path(scratch)
    elif Path(name).expanduser().is_dir():
        yield Path(name).expanduser()
    else:
        yield cached(name)


def _write_out(packaged: PackagedModel, folder: Path, layers: int | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"num_hidden_layers": layers} if layers is not None else {}
    source, gguf = str(packaged.path), packaged.gguf_file
    network: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf, dtype=torch.float32, trust_remote_code=False, **options
    )
    # it is dequantized now, and transformers refuses to save what says otherwise
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.is_quantized, network.hf_quantizer = False, None
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf).save_pretrained(folder)


def fetched(name: str) -> Path:
    """Return the folder of a hub model that the user named, fetched where the cache lacks it.

    Only files that are read: settings, tokenizers and safetensors of the top folder. No code, no pickles.

    Raises
    ------
    ModelError
        There is no such model, or it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_READ), ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} is neither a folder nor to be had from the hub: {reason}") from error


def cached(name: str) -> Path:
    """Return the folder of a hub model in the local cache. Nothing is downloaded: for names that files give.

    Raises
    ------
    ModelError
        It is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name} is neither a folder, a demo: name nor a model in the local hub cache; "
            f"check the path, or fetch it first: hf download {name}"
        ) from error
