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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from asepsis.core.lora import Branch, MultiscaleLinear, insert, layers, remove, restore
from asepsis.core.placement import head_of
from asepsis.errors import CheckpointError

FACTORS = "asepsis_multiscale.safetensors"
_FRESH = "_asepsis_fresh"


def mark_fresh(model: nn.Module, keys: list[str]) -> None:
    """Note which tensors of ``model`` were drawn at random because the checkpoint lacks them."""
    setattr(model, _FRESH, tuple(keys))


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
        got = _through_peft(model, folder, saved, logits).float()
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
        The folder has no such file, or it does not fit the model.
    """
    path = Path(folder) / FACTORS
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {FACTORS}: it was not saved from multi-scale layers")
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    if metadata.get("format") != "1":
        raise CheckpointError(f"{path} has format {metadata.get('format')!r}, this version reads '1'")
    described: dict[str, dict[str, Any]] = json.loads(metadata["branches"])
    for name in json.loads(metadata["modules_to_save"]):
        state = {
            k.removeprefix(f"base.{name}."): v for k, v in tensors.items() if k.startswith(f"base.{name}.")
        }
        model.get_submodule(name).load_state_dict(state)
    insert(model, {name: Branch(**{**d, "scales": tuple(d["scales"])}) for name, d in described.items()})
    for name, layer in layers(model):
        if not torch.equal(layer.scale.cpu(), tensors[f"{name}.scale"]):
            raise CheckpointError(f"{path}: the scales of {name} do not belong to its branch")
        layer.lora_A.copy_(tensors[f"{name}.lora_A"])
        layer.lora_B.copy_(tensors[f"{name}.lora_B"])


def _modules_to_save(model: nn.Module, found: dict[str, MultiscaleLinear]) -> list[str]:
    """Return the modules that must travel whole: new heads, and whatever else the base checkpoint lacks."""
    fresh = [key.rpartition(".")[0] for key in getattr(model, _FRESH, ())]
    head, _ = head_of(model)
    if head in ("classifier", "score"):
        fresh.append(head)
    fresh += [name for name, layer in found.items() if layer.branch.full]
    names = dict.fromkeys(
        head if name.startswith(f"{head}.") else name.removesuffix(".base") for name in fresh
    )
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _folded_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return a module's tensors with the branches inside it folded in, as PEFT names them."""
    module = model.get_submodule(name)
    state: dict[str, Tensor] = {}
    for leaf, part in module.named_modules():
        if isinstance(part, MultiscaleLinear):
            base: Any = part.base
            weight = base.weight.float() + (part.delta() if isinstance(base, nn.Linear) else part.delta().T)
            state[f"{leaf}.weight".removeprefix(".")] = weight.to(base.weight.dtype)
            if base.bias is not None:
                state[f"{leaf}.bias".removeprefix(".")] = base.bias
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


def _through_peft(model: nn.Module, folder: Path, saved: list[str], logits: Callable[[], Tensor]) -> Tensor:
    """Return the logits of ``model`` under the adapter as PEFT loads it."""
    from peft import PeftModel

    originals = {name: model.get_submodule(name) for name in saved}
    loaded: Any = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
    try:
        loaded.eval()
        return logits()
    finally:
        loaded.unload()
        for name, module in originals.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent) if parent else model, leaf, module)
        model.requires_grad_(requires_grad=False)


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
