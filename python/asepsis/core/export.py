"""Multi-scale layers in and out of files: a stock PEFT adapter for everybody, and the unfolded factors to go on from.

PEFT has one number per layer to scale a branch with, we have one per rank row, so the scale is folded into ``lora_A``
and PEFT's own factor is 1 (``lora_alpha = r``). A new head is drawn at random when a base is loaded, so it has to
travel along, trained or not: it goes into ``modules_to_save``, with its branch folded in.

Folding rounds, so the unfolded factors are kept in a second file, and conversion back is exact.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from asepsis.core.lora import (
    Branch,
    MultiscaleLinear,
    features_of,
    insert,
    is_linear,
    layers,
    remove,
    restore,
)
from asepsis.core.placement import body, head_of
from asepsis.errors import CheckpointError, ConfigError, ModelError

FACTORS = "asepsis_multiscale.safetensors"
_FRESH = "_asepsis_fresh"


def mark_fresh(model: nn.Module, keys: list[str]) -> None:
    """Note which tensors of ``model`` were drawn at random because the checkpoint lacks them."""
    setattr(model, _FRESH, tuple(keys))


def fresh_tensors(model: nn.Module) -> tuple[str, ...]:
    """Return which tensors of ``model`` were drawn at random when it was loaded."""
    names: tuple[str, ...] = getattr(model, _FRESH, ())
    return names


@torch.no_grad()
def save_adapter(model: nn.Module, folder: Path, *, logits: Callable[[], Tensor]) -> None:
    """Write the model's branches as a PEFT LoRA adapter, and check it: loaded by PEFT, it must say the same.

    Parameters
    ----------
    model : Module
        With multi-scale layers, in evaluation mode; as it was when this returns.
    folder : Path
        Exists.
    logits : callable
        Runs ``model`` on some rows and returns its logits; called with our layers and with PEFT's.

    Raises
    ------
    CheckpointError
        The written adapter gives other logits.
    """
    wanted = logits().float()
    found = dict(layers(model))
    saved = _modules_to_save(model, found)
    heads = {name: _folded_state(model, name) for name in saved}
    taken = remove(model)
    try:
        _write(model, folder, taken, saved, heads)
        got = _through_peft(model, folder, logits).float()
    finally:
        restore(model, taken)
    _write_factors(folder, model, found, saved)
    worst = float((got - wanted).abs().max())
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    if not worst <= (5e-2 if half else 1e-4) * (1 + float(wanted.abs().max())):
        raise CheckpointError(f"the adapter loaded by peft gives other logits: they differ by {worst:.3g}")


@torch.no_grad()
def load_multiscale(model: nn.Module, folder: str | Path) -> None:
    """Put the unfolded multi-scale layers of a saved adapter into its base model, in place; exact.

    Raises
    ------
    CheckpointError
        The folder has no such file, or it does not fit the model, which is left as it was.
    ModelError
        The model has multi-scale layers already.
    """
    path = Path(folder) / FACTORS
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {FACTORS}: it was not saved from multi-scale layers")
    if any(True for _ in layers(model)):
        raise ModelError("the model has multi-scale layers already; load into the plain base model")
    branches, saved, tensors = _read_factors(path)
    modules = dict(model.named_modules())
    expected: dict[str, tuple[int, ...]] = {}
    for name in saved:
        if name not in modules:
            raise CheckpointError(f"{path} has weights for {name}, which {type(model).__name__} lacks")
        expected |= {f"base.{name}.{k}": tuple(v.shape) for k, v in modules[name].state_dict().items()}
    for name, branch in branches.items():
        if name not in modules or not is_linear(modules[name]):
            raise CheckpointError(
                f"{path} has a branch for {name}, which is no linear layer of {type(model).__name__}"
            )
        inputs, outputs = features_of(modules[name])
        scale = branch.row_scales(outputs)
        expected[f"{name}.lora_A"] = (len(scale), inputs)
        expected[f"{name}.lora_B"] = (outputs, len(scale))
        if not torch.equal(scale, tensors.get(f"{name}.scale", torch.empty(0))):
            raise CheckpointError(f"{path}: the scales of {name} do not belong to its branch")
        expected[f"{name}.scale"] = (len(scale),)
    if wrong := {k: tuple(v.shape) for k, v in tensors.items()}.items() ^ expected.items():
        key = min(wrong)[0]
        has = tuple(tensors[key].shape) if key in tensors else "nothing"
        raise CheckpointError(f"{path} does not fit: {key} is {has}, wanted {expected.get(key, 'nothing')}")
    for name in saved:
        prefix = f"base.{name}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        modules[name].load_state_dict(state)
    # what came from the file is not in the base's checkpoint, so it must travel with the next adapter as well
    known = [k.removeprefix("base.") for k in tensors if k.startswith("base.")]
    mark_fresh(model, [*getattr(model, _FRESH, ()), *known])
    insert(model, branches)
    for name, layer in layers(model):
        layer.lora_A.copy_(tensors[f"{name}.lora_A"])
        layer.lora_B.copy_(tensors[f"{name}.lora_B"])


def _read_factors(path: Path) -> tuple[dict[str, Branch], list[str], dict[str, Tensor]]:
    """Return the branches, the modules saved whole and all tensors of a file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if metadata.get("format") != "1":
        raise CheckpointError(f"{path} has format {metadata.get('format')!r}, this version reads '1'")
    try:
        described: dict[str, dict[str, Any]] = json.loads(metadata["branches"])
        branches = {name: Branch(**{**d, "scales": tuple(d["scales"])}) for name, d in described.items()}
        saved: list[str] = list(json.loads(metadata["modules_to_save"]))
    except (KeyError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} does not describe its branches: {error!r}") from error
    return branches, saved, tensors


def _modules_to_save(model: nn.Module, found: dict[str, MultiscaleLinear]) -> list[str]:
    """Return the modules that must travel whole: new heads, and whatever else the base checkpoint lacks."""
    keys = list(getattr(model, _FRESH, ()))
    ours = {id(p) for layer in found.values() for p in layer.parameters()}
    keys += [key for key, p in model.named_parameters() if p.requires_grad and id(p) not in ours]
    for key in keys:
        if "." not in key:
            raise CheckpointError(
                f"{key} stands in no module of its own, so it cannot travel with an adapter"
            )
    names = {key.rpartition(".")[0].removesuffix(".base") for key in keys}
    head, _ = head_of(model)
    if head in ("classifier", "score"):
        names.add(head)
    names |= {name for name, layer in found.items() if layer.branch.full}
    names = {head if name.startswith(f"{head}.") else name for name in names}
    # PEFT saves every module whose name ends in a given one, without a look at dots: `pre_classifier` too
    names = {name for name, _ in model.named_modules() if name.endswith(tuple(names))} if names else names
    return sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _folded_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return a module's tensors with the branches inside it folded in, as PEFT names them."""
    module = model.get_submodule(name)
    state: dict[str, Tensor] = {}
    for leaf, part in module.named_modules():
        if isinstance(part, MultiscaleLinear):
            state[f"{leaf}.weight".removeprefix(".")] = part.folded()
            if part.bias is not None:
                state[f"{leaf}.bias".removeprefix(".")] = part.bias
    inside = [leaf for leaf, part in module.named_modules() if isinstance(part, MultiscaleLinear)]
    for key, value in module.state_dict().items():
        if not any(not leaf or key.startswith(f"{leaf}.") for leaf in inside):
            state[key] = value
    return state


def _write(
    model: nn.Module,
    folder: Path,
    taken: dict[str, MultiscaleLinear],
    saved: list[str],
    heads: dict[str, dict[str, Tensor]],
) -> None:
    from peft import LoraConfig

    whole: Any = model
    adapted = {n: x for n, x in taken.items() if not any(n == s or n.startswith(f"{s}.") for s in saved)}
    tensors = {
        f"base_model.model.{name}.{key}": value
        for name, state in heads.items()
        for key, value in state.items()
    }
    if not adapted:  # all branches are in modules saved whole, but PEFT wants a layer to adapt: by nothing
        name = next(n for n in body(model) if not any(n == s or n.startswith(f"{s}.") for s in saved))
        adapted = {name: MultiscaleLinear(model.get_submodule(name), Branch(rank=1))}
        adapted[name].lora_A.zero_()
    for name, layer in adapted.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.scale[:, None] * layer.lora_A
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach()
    ranks = {name: len(layer.scale) for name, layer in adapted.items()}
    rank = max(ranks.values(), default=1)
    others = {f"^{name.replace('.', '[.]')}$": r for name, r in ranks.items() if r != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(adapted),
        modules_to_save=saved or None,
        fan_in_fan_out=any(not isinstance(layer.base, nn.Linear) for layer in adapted.values()),
        task_type="SEQ_CLS" if "classifier" in saved or "score" in saved else "CAUSAL_LM",
        base_model_name_or_path=whole.config._name_or_path,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(content, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def _through_peft(model: nn.Module, folder: Path, logits: Callable[[], Tensor]) -> Tensor:
    """Return the logits of ``model`` under the adapter as PEFT loads it."""
    from peft import PeftModel, get_peft_model_state_dict

    # PEFT rebuilds the model in place, and undoes only a part of that
    modules = {module: dict(module._modules) for module in model.modules()}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    attributes = set(vars(model))
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False  # type: ignore[assignment]  # PEFT would hook the embeddings
    try:
        try:
            loaded: Any = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"peft cannot load the adapter: {error!r}") from error
        with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as file:
            written = set(file.keys())
        if odd := written ^ set(get_peft_model_state_dict(loaded, save_embedding_layers=False)):
            raise CheckpointError(f"peft wants other tensors than were written: {', '.join(sorted(odd))}")
        loaded.eval()
        return logits()
    finally:
        for module, children in modules.items():
            module._modules.clear()
            module._modules.update(children)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        for module in checkpointed:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def _write_factors(
    folder: Path, model: nn.Module, found: dict[str, MultiscaleLinear], saved: list[str]
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, layer in found.items():
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"] = layer.lora_A, layer.lora_B
        tensors[f"{name}.scale"] = layer.scale
    taken = remove(model)
    try:
        for name in saved:
            for key, value in model.get_submodule(name).state_dict().items():
                tensors[f"base.{name}.{key}"] = value
    finally:
        restore(model, taken)
    metadata = {
        "format": "1",
        "branches": json.dumps({name: dataclasses.asdict(layer.branch) for name, layer in found.items()}),
        "modules_to_save": json.dumps(saved),
    }
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(content, str(folder / FACTORS), metadata=metadata)
