"""Overwritten rows of an embedding in a LoRA adapter's files, as PEFT's trainable tokens.

PEFT saves an adapter's own factors. A row overwritten in the base beneath would be lost without a word, and with it the
defense; so the rows travel in the adapter, and PEFT puts them back wherever it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asepsis.core.exposure import word_embeddings
from asepsis.core.phases import Ids
from asepsis.errors import CheckpointError

_CHECK = "asepsis_check"


@torch.no_grad()
def save_adapter_with_rows(
    model: nn.Module, folder: Path, rows: Ids, *, logits: Callable[[], Tensor]
) -> None:
    """Write a peft model's adapter together with rows of its word embeddings, and check it.

    Parameters
    ----------
    model : PeftModel
        With a LoRA adapter, in evaluation mode; as it was when this returns.
    folder : Path
        Exists.
    rows : ids
        Token ids that were overwritten.
    logits : callable
        Runs ``model`` on some rows and returns its logits.

    Raises
    ------
    CheckpointError
        The adapter is of another kind than LoRA, or loaded by peft gives other logits.
    """
    outer: Any = model
    kind = str(outer.peft_config[outer.active_adapter].peft_type.value)
    if kind != "LORA":
        raise CheckpointError(
            f"rows of the word embeddings were overwritten, and a {kind} adapter cannot carry them; train with LoRA, or "
            "all weights"
        )
    outer.save_pretrained(folder, save_embedding_layers=False)
    words = word_embeddings(model)
    name = next(name for name, p in outer.get_base_model().named_parameters() if p is words)
    module, at = name.removesuffix(".weight"), torch.from_numpy(np.unique(rows))
    settings = folder / "adapter_config.json"
    content = json.loads(settings.read_text())
    content["trainable_token_indices"] = {module: at.tolist()}
    settings.write_text(json.dumps(content, indent=2, sort_keys=True))
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(str(weights))
    key = f"base_model.model.{module}.token_adapter.trainable_tokens_delta"
    tensors[key] = words[at.to(words.device)].cpu().contiguous()
    save_file(tensors, str(weights), metadata={"format": "pt"})
    _check(model, folder, words, at, logits)


def _check(
    model: nn.Module, folder: Path, words: nn.Parameter, at: Tensor, logits: Callable[[], Tensor]
) -> None:
    """Load the adapter beside the trained one, over a base that lacks the rows: it must say the same."""
    outer: Any = model
    wanted, active = logits().float(), outer.active_adapter
    modules = {module: dict(module._modules) for module in model.modules()}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    kept = words[at.to(words.device)].clone()
    words[at.to(words.device)] = 0
    try:
        outer.load_adapter(str(folder), _CHECK)
        outer.set_adapter(_CHECK)
        got = logits().float()
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"peft cannot load the adapter: {error!r}") from error
    finally:
        outer.set_adapter(active)
        if _CHECK in outer.peft_config:
            outer.delete_adapter(_CHECK)
        for module, children in modules.items():
            module._modules.clear()
            module._modules.update(children)
        words[at.to(words.device)] = kept
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    worst = float((got - wanted).abs().max())
    if not worst <= 1e-4 * (1 + float(wanted.abs().max())):
        raise CheckpointError(f"the adapter loaded by peft gives other logits: they differ by {worst:.3g}")
