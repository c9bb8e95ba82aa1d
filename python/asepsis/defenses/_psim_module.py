"""PSIM's module: a PEFT adapter of its own over the frozen weights of a model, which does not notice."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from asepsis.core.export import fresh_tensors
from asepsis.core.foreign import foreign
from asepsis.core.placement import attention, head_of
from asepsis.core.views import shared_view
from asepsis.core.weights.admission import admit_adapter
from asepsis.data import Task
from asepsis.defenses._psim_config import Kind, PsimConfig
from asepsis.errors import CheckpointError, ConfigError, ModelError


def kind_for(model: nn.Module, config: PsimConfig, task: Task) -> Kind:
    """Return the kind of module for a model.

    Raises
    ------
    ConfigError
        Virtual tokens were asked for where the model classifies by its last token: padding would be taken for it.
    """
    decoder = task == "classification" and head_of(underlying(model))[0] == "score"
    if config.kind == "auto":
        return "lora"
    if decoder and config.kind in ("p_tuning", "prompt_tuning"):
        raise ConfigError(
            f"kind={config.kind!r} hides from a classifying decoder where a padded text ends; use 'lora' or 'prefix_tuning'"
        )
    return config.kind


def attach(model: nn.Module, config: PsimConfig, task: Task, *, seed: int) -> nn.Module:
    """Return a new module over the frozen weights of ``model``: a peft model that shares them, drawn from ``seed``.

    ``config.head`` says whether a classifier's head is trained with it; peft copies it either way.

    Where ``model`` is a peft model itself, the module stands on the weights under its adapter, which may be poisoned as
    they came; what the user trained on top is left out.
    """
    from peft import get_peft_model

    kind = kind_for(model, config, task)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        torch.manual_seed(seed)
        base = underlying(model)
        module: nn.Module = get_peft_model(cast(Any, base), _peft_config(base, kind, config, task))
    if config.head == "frozen" or (config.head == "auto" and kind == "lora"):
        for name, parameter in module.named_parameters():
            if ".modules_to_save." in name:
                parameter.requires_grad_(False)
    return module


def reattach(model: nn.Module, folder: Path) -> nn.Module:
    """Return the module saved in a folder over the frozen weights of ``model``.

    Raises
    ------
    CheckpointError
        The files are missing, or do not fit the model.
    """
    from peft import PeftModel

    try:
        admit_adapter(folder)
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    base = cast(Any, underlying(model))
    with (
        warnings.catch_warnings(),
        foreign(f"peft cannot load the module in {folder}", CheckpointError),
    ):
        # peft goes on with new ones
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded: Any = PeftModel.from_pretrained(base, str(folder), use_safetensors=True)
    module: nn.Module = loaded
    return module.requires_grad_(False).eval()


def underlying(model: nn.Module) -> nn.Module:
    """Return a view of the plain transformers model: of the model, or of what a peft model's adapter stands on."""
    view: Any = shared_view(model)
    if not hasattr(view, "peft_config"):
        return cast(nn.Module, view)
    from peft.utils import ModulesToSaveWrapper

    fresh = fresh_tensors(view.get_base_model())
    for name, wrapped in list(view.named_modules()):
        if isinstance(wrapped, ModulesToSaveWrapper):
            # a head that was drawn at random for the adapter to train says nothing without it
            short = name.rpartition(".")[2]
            drawn = any(short in key.split(".") for key in fresh)
            inner = wrapped.modules_to_save[wrapped.active_adapters[0]] if drawn else wrapped.original_module
            parent, _, leaf = name.rpartition(".")
            setattr(view.get_submodule(parent), leaf, inner)
    plain = view.get_base_model() if view.active_peft_config.is_prompt_learning else view.unload()
    if not hasattr(plain, "config"):
        raise ModelError(f"no transformers model was found under the adapter of {type(model).__name__}")
    return cast(nn.Module, plain).requires_grad_(False).eval()


def _peft_config(base: nn.Module, kind: Kind, config: PsimConfig, task: Task) -> Any:
    from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    task_type = "SEQ_CLS" if task == "classification" else "CAUSAL_LM"
    if kind == "lora":
        targets = sorted({name.rpartition(".")[2] for name in attention(base)})
        return LoraConfig(
            r=config.rank, lora_alpha=2 * config.rank, target_modules=targets, task_type=task_type
        )
    n: int = config.virtual_tokens
    if kind == "p_tuning":
        return PromptEncoderConfig(
            encoder_hidden_size=config.hidden_size, num_virtual_tokens=n, task_type=task_type
        )
    if kind == "prompt_tuning":
        return PromptTuningConfig(num_virtual_tokens=n, task_type=task_type)
    return PrefixTuningConfig(num_virtual_tokens=n, task_type=task_type)
