"""PEFT's LoRA layers on the fused operation: all active adapters of a layer as one low-rank product, and back.

PEFT adds its active adapters one after the other, each with two products and three passes over the layer's output. Their
sum is one product of the summed rank whose rows carry a scale each, which is :func:`asepsis.kernels.multiscale_lora`.

Only the ``forward`` of single layers is set, on the instance, and :func:`unfuse` deletes it again. Parameters, names in the
state dict, hooks, ``save_pretrained`` and switching, scaling, merging or disabling adapters are PEFT's and stay so: what is
fused is looked up on every call, and whatever the operation does not cover takes PEFT's own way, on that call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asepsis.core.fuse_report import FusedModule, FuseReport, Path
from asepsis.core.fuse_shared import SharedInput, groups
from asepsis.core.lora import _is_conv1d, _is_plain
from asepsis.errors import ConfigError, MissingDependency, ModelError
from asepsis.kernels import Backend, GroupedLayer, grouped_lora, multiscale_lora

Dropout = Literal["peft", "shared"]

_SETTINGS = "_asepsis_fused"


def fuse(
    model: nn.Module,
    *,
    dropout: Dropout = "peft",
    backend: Backend = "auto",
    example: Mapping[str, Any] | None = None,
) -> FuseReport:
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
    example : mapping, optional
        Keyword arguments of one call of the model, which is made in evaluation and without gradients to see which layers
        read one input, q, k and v say. These are computed together by :func:`asepsis.kernels.grouped_lora` wherever their
        bases are read and nothing drops out; not while ``torch.compile`` traces.

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
    reasons = {name: _never(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        if reasons[name] is None:
            reasons[name] = _not_now(layer, dropout, training=False)
            setattr(layer, _SETTINGS, _Settings(dropout, backend))
            layer.forward = MethodType(_forward, layer)
    if example is not None:
        try:
            _find_shared(model, layers, example)
        except BaseException:
            unfuse(model)
            raise
    made = [_describe(name, layer, reasons[name], dropout) for name, layer in layers.items()]
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
        self.shared: SharedInput | None = None
        self.watched: list[tuple[Any, Tensor, int]] | None = None
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
    if settings.watched is not None:
        settings.watched.append((layer, x, x._version))
    if args or kwargs or _not_now(layer, settings.dropout, training=layer.training) or not _fits(layer, x):
        return type(layer).forward(layer, x, *args, **kwargs)
    if settings.shared is not None and not torch.compiler.is_compiling():
        out = settings.shared.output(layer, x, _together)
        if out is not None:
            return out
    names = _active(layer)
    lora_a, lora_b, scale = _factors(layer, names, x.device)
    p = _dropout_of(layer, names)[0] if layer.training else 0.0
    seed = torch.randint(2**62, (), device=x.device) if p else None
    more: dict[str, Any] = {"dropout": p, "seed": seed, "backend": settings.backend}
    base = layer.base_layer
    if not _readable(base):
        out = base(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(out.dtype)  # what PEFT gives has the dtype of the base's output
        return multiscale_lora(x, None, None, lora_a, lora_b, scale, base_output=out, **more)
    return multiscale_lora(x, _weight(base), base.bias, lora_a, lora_b, scale, **more)


def _together(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...] | None:
    """What layers of one input make of it, in one operation; None where one of them goes another way on this call."""
    group = []
    for layer in layers:
        settings, base, names = layer._asepsis_fused, layer.base_layer, _active(layer)
        if _not_now(layer, settings.dropout, training=layer.training) or not _fits(layer, x):
            return None
        if not _readable(base) or (layer.training and any(_dropout_of(layer, names))):
            return None
        lora_a, lora_b, scale = _factors(layer, names, x.device)
        group.append(
            GroupedLayer(weight=_weight(base), bias=base.bias, lora_a=lora_a, lora_b=lora_b, scale=scale)
        )
    return grouped_lora(x, group, backend=layers[0]._asepsis_fused.backend)


def _find_shared(model: nn.Module, layers: Mapping[str, Any], example: Mapping[str, Any]) -> None:
    """Run the model once and tell the layers with whom they share an input."""
    fused = {name: layer for name, layer in layers.items() if _is_fused(layer)}
    name_of = {id(layer): name for name, layer in fused.items()}
    training = {module: module.training for module in model.modules()}
    calls: list[tuple[Any, Tensor, int]] = []
    for layer in fused.values():
        layer._asepsis_fused.watched = calls
    try:
        model.eval()
        # tensors of inference mode have no version to tell whether they were written to
        with torch.inference_mode(mode=False), torch.no_grad():
            model(**example)
    finally:
        for module, was in training.items():
            module.training = was
        for layer in fused.values():
            layer._asepsis_fused.watched = None
    for group in groups([(name_of[id(layer)], layer, *seen) for layer, *seen in calls]):
        if all(_readable(layer.base_layer) for layer in group.layers):
            for layer in group.layers:
                layer._asepsis_fused.shared = group


def _factors(layer: Any, names: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A ``[R, I]``, B ``[O, R]`` and scales ``[R]`` of the active adapters together."""
    down, up = [layer.lora_A[n].weight for n in names], [layer.lora_B[n].weight for n in names]
    lora_a = down[0] if len(names) == 1 else torch.cat(down, 0)
    lora_b = up[0] if len(names) == 1 else torch.cat(up, 1)
    return lora_a, lora_b, layer._asepsis_fused.scale(layer, names, device)


def _weight(base: Any) -> Tensor:
    weight: Tensor = base.weight.t() if _is_conv1d(base) else base.weight
    return weight


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
    shared = layer._asepsis_fused.shared
    return FusedModule(
        name=name,
        path=path,
        reason=training or "",
        adapters=names,
        rank=rank,
        base=base,
        shares=shared.names if shared is not None else (),
    )


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
