"""PEFT's LoRA layers on the fused operation: all active adapters of a layer as one low-rank product, and back.

PEFT adds its active adapters one after the other, each with two products and three passes over the layer's output. Their
sum is one product of the summed rank whose rows carry a scale each, which is :func:`asepsis.kernels.multiscale_lora`.

Only the ``forward`` of single layers is set, on the instance, and :func:`unfuse` deletes it again. Parameters, names in the
state dict, hooks, ``save_pretrained`` and switching, scaling, merging or disabling adapters are PEFT's and stay so: what is
fused is looked up on every call, and whatever the operation does not cover takes PEFT's own way, on that call.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asepsis.core.lora import _is_conv1d, _is_plain
from asepsis.errors import ConfigError, MissingDependency, ModelError
from asepsis.kernels import Backend, multiscale_lora

Dropout = Literal["peft", "shared"]
Path = Literal["fused", "fused in evaluation", "peft"]

_SETTINGS = "_asepsis_fused"


@dataclass(frozen=True, kw_only=True)
class FusedModule:
    """Which way one module takes, as things stand.

    Attributes
    ----------
    name : str
        Qualified name in the model.
    path : {"fused", "fused in evaluation", "peft"}
    reason : str
        Why not fused; empty where it is.
    adapters : tuple of str
        Its active adapters.
    rank : int
        Of all of them together.
    base : {"read", "called"}
        Whether its base's weight is read, or the base is called with its hooks and its own way to unpack a quantized weight,
        and the adapters are added to what it gives.
    """

    name: str
    path: Path
    reason: str
    adapters: tuple[str, ...] = ()
    rank: int = 0
    base: Literal["read", "called"] = "read"


@dataclass(frozen=True, kw_only=True)
class FuseReport:
    """What :func:`fuse` did with every module that PEFT put into the model."""

    modules: tuple[FusedModule, ...]

    @property
    def fused(self) -> tuple[str, ...]:
        """Names of the modules on the fused operation, those that are so in evaluation only included."""
        return tuple(module.name for module in self.modules if module.path != "peft")

    @property
    def left(self) -> dict[str, str]:
        """Modules left to PEFT, with the reason."""
        return {module.name: module.reason for module in self.modules if module.path == "peft"}

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} of {len(self.modules)} modules are fused"]
        groups: dict[tuple[str, str], list[str]] = {}
        for module in self.modules:
            called = ", base called" if module.base == "called" and module.path != "peft" else ""
            groups.setdefault((module.path + called, module.reason), []).append(module.name)
        for (path, reason), names in groups.items():
            because = f": {reason}" if reason else ""
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{path}{because} - {', '.join(names[:3])}{more}")
        return "\n".join(lines)


def fuse(model: nn.Module, *, dropout: Dropout = "peft", backend: Backend = "auto") -> FuseReport:
    """Run the LoRA adapters of a PEFT model, one or several on the same tokens, on the fused operation, in place.

    Parameters
    ----------
    model : nn.Module
        From ``peft.get_peft_model`` or ``add_adapter``.
    dropout : {"peft", "shared"}
        ``"peft"`` leaves a layer that drops out while training to PEFT, so that its masks are PEFT's; in evaluation it is
        fused. ``"shared"`` draws one mask for each layer and step from torch's generator, for all adapters of the layer,
        where PEFT draws one for each: the same distribution for one adapter, another for several.
    backend : {"auto", "reference", "triton"}
        As of the operation.

    Returns
    -------
    FuseReport
        Which module takes which way and why. It describes the moment: other adapters may be made active later.

    Raises
    ------
    ModelError
        The model has no LoRA layer, or none that is fused as things stand; it is left as it was.
    MissingDependency
        peft is not installed.

    Notes
    -----
    Everything is computed in the dtype of the layer's input (of autocast where it is on), summed in float32. PEFT casts
    the input up to the dtype of the adapters, float32 by default, and adds adapters one by one, rounding after each: on a
    16-bit model the results differ by that rounding.
    """
    if dropout not in ("peft", "shared"):
        raise ConfigError(f"dropout must be 'peft' or 'shared', got {dropout!r}")
    layers, others = _modules(model)
    if not layers and not others:
        raise ModelError(
            f"{type(model).__name__} has no LoRA layer; add adapters with peft.get_peft_model first"
        )
    unfuse(model)
    made = []
    for name, layer in layers.items():
        reason = _never(layer)
        if reason is None:
            reason = _not_now(layer, dropout, training=False)
            setattr(layer, _SETTINGS, _Settings(dropout, backend))
            layer.forward = MethodType(_forward, layer)
        made.append(_describe(name, layer, reason, dropout))
    made += [FusedModule(name=name, path="peft", reason=reason) for name, reason in others.items()]
    report = FuseReport(modules=tuple(made))
    if not report.fused:
        unfuse(model)
        raise ModelError(f"no LoRA layer of {type(model).__name__} can be fused\n{report}")
    return report


def unfuse(model: nn.Module) -> int:
    """Give every layer PEFT's forward back, in place, and return how many had another."""
    found = [module for module in model.modules() if _is_fused(module)]
    for module in found:
        del module.forward, module._asepsis_fused
    return len(found)


class _Settings:
    """What a fused layer was told, and its scales; beside the layer's own attributes, under ``_SETTINGS``."""

    def __init__(self, dropout: Dropout, backend: Backend) -> None:
        self.dropout, self.backend = dropout, backend
        self._scales: tuple[Any, Tensor] | None = None

    def scale(self, layer: Any, names: tuple[str, ...], device: torch.device) -> Tensor:
        """Return the scale of each rank row, float32 [R]."""
        ranks = tuple((len(layer.lora_A[n].weight), float(layer.scaling[n])) for n in names)
        # a copy from the host on every call would be one on every layer and step
        if self._scales is None or self._scales[0] != (device, ranks) or torch.compiler.is_compiling():
            made = torch.cat([torch.full((rank,), scaling, device=device) for rank, scaling in ranks])
            if torch.compiler.is_compiling():
                return made
            self._scales = (device, ranks), made
        return self._scales[1]


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The forward of a fused layer; PEFT's is its class's."""
    settings: _Settings = layer._asepsis_fused
    if args or kwargs or _not_now(layer, settings.dropout, training=layer.training) or not _fits(layer, x):
        return type(layer).forward(layer, x, *args, **kwargs)
    names = _active(layer)
    down, up = [layer.lora_A[n].weight for n in names], [layer.lora_B[n].weight for n in names]
    lora_a = down[0] if len(names) == 1 else torch.cat(down, 0)
    lora_b = up[0] if len(names) == 1 else torch.cat(up, 1)
    p = _dropout_of(layer, names)[0] if layer.training else 0.0
    seed = torch.randint(2**62, (), device=x.device) if p else None
    more: dict[str, Any] = {"dropout": p, "seed": seed, "backend": settings.backend}
    scale = settings.scale(layer, names, x.device)
    base = layer.base_layer
    if not _readable(base):
        out = base(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(out.dtype)  # what PEFT gives has the dtype of the base's output
        return multiscale_lora(x, None, None, lora_a, lora_b, scale, base_output=out, **more)
    weight = base.weight.t() if _is_conv1d(base) else base.weight
    return multiscale_lora(x, weight, base.bias, lora_a, lora_b, scale, **more)


def _is_fused(module: nn.Module) -> bool:
    return _SETTINGS in module.__dict__


def _modules(model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """LoRA layers by name, and the other modules PEFT trains with the reason why they are none."""
    try:
        from peft.tuners.lora import LoraLayer
        from peft.utils import AuxiliaryTrainingWrapper
    except ImportError as problem:
        raise MissingDependency("asepsis.fuse needs peft: pip install peft") from problem
    layers: dict[str, Any] = {}
    others: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layers[name] = module
        elif isinstance(module, AuxiliaryTrainingWrapper):
            others[name] = f"{type(module).__name__}: trained itself, without a low-rank product"
    return layers, others


def _describe(name: str, layer: Any, reason: str | None, dropout: Dropout) -> FusedModule:
    if reason is not None:
        return FusedModule(name=name, path="peft", reason=reason, adapters=_active(layer))
    training = _not_now(layer, dropout, training=True)
    path: Path = "fused" if training is None else "fused in evaluation"
    names = _active(layer)
    rank = sum(len(layer.lora_A[n].weight) for n in names)
    base: Literal["read", "called"] = "read" if _readable(layer.base_layer) else "called"
    return FusedModule(name=name, path=path, reason=training or "", adapters=names, rank=rank, base=base)


def _active(layer: Any) -> tuple[str, ...]:
    known = layer.lora_A
    return tuple(name for name in layer.active_adapters if name in known)


def _never(layer: Any) -> str | None:
    """Why this layer cannot be fused whatever its adapters; None where it can."""
    from peft.tuners.lora.layer import Linear

    if "forward" in layer.__dict__:
        return "something else has replaced this layer's forward (hooks that move weights do)"
    if type(layer) is not Linear and not _quantized(layer):
        kind = type(layer).__name__
        known = {
            "Embedding": "a lookup is no product",
            "Conv1d": "a convolution is no linear layer",
            "Conv2d": "a convolution is no linear layer",
            "Conv3d": "a convolution is no linear layer",
            "MultiheadAttention": "it merges its adapters in every pass",
            "ParamWrapper": "it adapts a parameter of its parent",
        }
        return f"LoRA {kind}: {known.get(kind, 'its forward is its own, quantized layers of this kind were not tried')}"
    return None


def _quantized(layer: Any) -> bool:
    """Whether this is PEFT's layer over one of bitsandbytes': its adapters are added to what the base gives, as elsewhere."""
    kind = type(layer)
    return kind.__module__ == "peft.tuners.lora.bnb" and kind.__name__ in ("Linear4bit", "Linear8bitLt")


def _not_now(layer: Any, dropout: Dropout, *, training: bool) -> str | None:
    """Why a call takes PEFT's way with the adapters as they are; None where it is fused."""
    if layer.disable_adapters:
        return "its adapters are disabled"
    if layer.merged:
        return "its adapters are merged into the weight"
    names = _active(layer)
    if not names:
        return "it has no active adapter"
    for name in names:
        if name in layer.lora_variant:
            return f"adapter {name} is no plain LoRA ({type(layer.lora_variant[name]).__name__})"
        if layer.lora_bias.get(name):
            return f"adapter {name} has a bias of its own (lora_bias)"
        for factor in (layer.lora_A[name], layer.lora_B[name]):
            if not _plain_linear(factor):
                return f"a factor of adapter {name} is a {type(factor).__name__} or has hooks, which must run"
        if layer.lora_dropout[name]._forward_hooks or layer.lora_dropout[name]._forward_pre_hooks:
            return f"the dropout of adapter {name} has hooks, which must run"
    rates = _dropout_of(layer, names)
    if training and any(rates):
        if dropout == "peft":
            return f"dropout={max(rates):g} while training is PEFT's, one mask for each adapter; dropout='shared' fuses it"
        if len(set(rates)) > 1:
            return f"its adapters drop out at different rates: {', '.join(f'{rate:g}' for rate in rates)}"
        if rates[0] >= 1:
            return "dropout=1 leaves nothing"
    return None


def _dropout_of(layer: Any, names: tuple[str, ...]) -> list[float]:
    return [float(getattr(layer.lora_dropout[name], "p", 0.0)) for name in names]


def _fits(layer: Any, x: Tensor) -> bool:
    """Whether a base that is read would take this input as it is: else PEFT's way, with its casts and its errors."""
    if not x.is_floating_point() or not layer.cast_input_dtype_enabled:
        return False
    base = layer.base_layer
    # one that is called says itself what it takes: the dtype of a packed weight means nothing
    return torch.is_autocast_enabled(x.device.type) or not _readable(base) or x.dtype == base.weight.dtype


def _plain_linear(module: nn.Module) -> bool:
    own = type(module).forward is nn.Linear.forward and "forward" not in module.__dict__
    return own and not _has_hooks(module) and _is_plain(module)


def _readable(base: Any) -> bool:
    """Whether the base's weight says all: frozen, plain and without hooks; else the base is called."""
    known = (isinstance(base, nn.Linear) or _is_conv1d(base)) and _is_plain(base)
    if not known or "forward" in base.__dict__ or _has_hooks(base):
        return False
    return not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
