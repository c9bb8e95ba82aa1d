"""Multi-scale low-rank layers: put into a model, taken out again, folded into its weights.

A multi-scale layer is a frozen linear layer plus ``S`` low-rank products at different scales (Wu et al., ACL 2024,
section 3: "multiple radial scalings"). Everything between input and output of the branch is linear, so the sum of the
``S`` products is one product of rank ``S * rank`` whose rank rows carry a scale each:

    y = x W^T + b + ((x A^T) * scale) B^T,   scale = alpha / rank * [s_1, ..., s_1, s_2, ..., s_S]

Ordinary LoRA is the case of one scale of 1. A fully trained output layer is the case ``B = I`` with ``rank`` equal to
the number of outputs. So one class serves them all, and everything that is trained is a low-rank factor: the gradients
of two groups of rows can then be told apart in one pass (:class:`RowGroups`).

Scales are kept apart from the factors in training. Adam sees the scale as a learning rate per rank row: folding it in
would change the training, not only the notation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asepsis.errors import ConfigError, ModelError
from asepsis.kernels import SetAside, multiscale_lora

Init = Literal["zero", "reference"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What is added to a linear layer.

    Attributes
    ----------
    rank : int
        Rank of each scale.
    alpha : float
        The branch is multiplied by ``alpha / rank``, whatever the number of scales.
    scales : tuple of float
        One factor per scale.
    init : {"zero", "reference"}
        ``lora_A`` is uniform in ``±1/sqrt(I)`` in both; ``lora_B`` is zero, or uniform in ``±1/sqrt(S * rank)`` as in
        the authors' code, which makes the layer start far from the pretrained one.
    full : bool
        Train the whole weight instead: ``lora_B`` is the frozen identity and ``lora_A`` [O, I] starts at zero. The
        other fields are not read.
    """

    rank: int = 8
    alpha: float = 32.0
    scales: tuple[float, ...] = (1.0,)
    init: Init = "zero"
    full: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, got {self.rank!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha must be positive and finite, got {self.alpha!r}")
        if not self.scales or not all(math.isfinite(s) and s > 0 for s in self.scales):
            raise ConfigError(f"scales must be positive and finite numbers, got {self.scales!r}")
        if self.init not in ("zero", "reference"):
            raise ConfigError(f"init must be 'zero' or 'reference', got {self.init!r}")

    def row_scales(self, outputs: int) -> Tensor:
        """Return the scale of each rank row beside a layer of ``outputs`` features: float32 [R]."""
        if self.full:
            return torch.ones(outputs)
        return (torch.tensor(self.scales) * (self.alpha / self.rank)).repeat_interleave(self.rank)


@dataclass
class RowGroups:
    """Splits one concatenated pass: the first samples are the batch, the others the reference rows.

    One object is shared by all layers of a model. While ``samples`` is set, a layer's weight gradients come from the
    batch alone and those of the reference rows are added to ``aside``.

    Attributes
    ----------
    samples, total : int or None, int
        Samples of the batch, and of batch and reference together.
    aside : dict of Parameter to Tensor
        Where the reference gradient of each parameter goes, float32, of the parameter's shape.
    """

    samples: int | None = None
    total: int = 0
    aside: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def cut(self, layer: MultiscaleLinear, x: Tensor) -> SetAside | None:
        """Return where ``layer`` cuts its input ``[B, ..., I]``; None outside a concatenated pass."""
        if self.samples is None:
            return None
        if x.shape[0] != self.total:
            raise ModelError(
                f"a layer was given {x.shape[0]} samples where the pass has {self.total}: this model rearranges rows, "
                "so batch and reference rows cannot share a pass; use passes='two'"
            )
        boundary = self.samples * (x.numel() // x.shape[-1] // max(1, x.shape[0]))
        # a frozen factor has no gradient to set aside; its own tensor stands in and is left alone
        factors = (layer.lora_A, layer.lora_B)
        return SetAside(boundary, *(self.aside.get(factor, factor.detach()) for factor in factors))


class MultiscaleLinear(nn.Module):
    """A frozen linear layer and its low-rank branch.

    Parameters
    ----------
    base : nn.Linear, transformers' Conv1D, or a quantized linear layer of bitsandbytes
        Frozen here.
    branch : Branch
    groups : RowGroups, optional
        Shared by the layers of one model.

    Attributes
    ----------
    lora_A : Parameter [R, I], float32
    lora_B : Parameter [O, R], float32
    scale : Tensor [R], float32
    """

    scale: Tensor

    def __init__(self, base: nn.Module, branch: Branch, groups: RowGroups | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = features_of(base)
        self.base = base.requires_grad_(requires_grad=False)
        self.branch = branch
        self.groups = RowGroups() if groups is None else groups
        weight: Any = base.weight
        make = {"device": weight.device, "dtype": torch.float32}
        scale = branch.row_scales(self.out_features).to(weight.device)
        rows = len(scale)
        if branch.full:
            self.lora_A = nn.Parameter(torch.zeros(rows, self.in_features, **make))
            self.lora_B = nn.Parameter(torch.eye(rows, **make), requires_grad=False)
        else:
            self.lora_A = nn.Parameter(torch.empty(rows, self.in_features, **make))
            self.lora_B = nn.Parameter(torch.zeros(self.out_features, rows, **make))
            nn.init.uniform_(self.lora_A, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
            if branch.init == "reference":
                nn.init.uniform_(self.lora_B, -1 / math.sqrt(rows), 1 / math.sqrt(rows))
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Any:
        """The frozen weight, for code that looks at a linear layer's."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The frozen bias, or None."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, ..., I]`` to ``[B, ..., O]``."""
        aside = self.groups.cut(self, x)
        factors = (self.lora_A, self.lora_B, self.scale)
        if not _is_plain(self.base):
            return multiscale_lora(x, None, None, *factors, base_output=self.base(x), set_aside=aside)
        weight = self.weight.T if _is_conv1d(self.base) else self.weight
        return multiscale_lora(x, weight, self.bias, *factors, set_aside=aside)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return what the branch adds to the weight: float32 [O, I]."""
        return (self.lora_B * self.scale) @ self.lora_A

    @torch.no_grad()
    def folded(self) -> Tensor:
        """Return the weight with the branch added, in the frozen weight's shape and dtype.

        Raises
        ------
        ModelError
            The weight is quantized: folding would round the branch away.
        """
        _check_foldable(self.base)
        weight: Tensor = self.weight
        delta = self.delta().T if _is_conv1d(self.base) else self.delta()
        return (weight + delta).to(weight.dtype)

    def extra_repr(self) -> str:
        """Say the branch in ``print(model)``."""
        if self.branch.full:
            return "full"
        return f"rank={self.branch.rank}, alpha={self.branch.alpha:g}, scales={self.branch.scales}"


def insert(model: nn.Module, branches: dict[str, Branch]) -> RowGroups:
    """Freeze ``model`` and put a branch beside each named linear layer, in place.

    Parameters
    ----------
    branches : dict of str to Branch
        By the module's qualified name. New factors are drawn from torch's generator in the dict's order.

    Returns
    -------
    RowGroups
        Shared by the new layers.

    Raises
    ------
    ModelError
        A name is no linear layer of the model, or the model has multi-scale layers already.
    """
    if any(True for _ in layers(model)):
        raise ModelError("the model has multi-scale layers already; fold or remove them first")
    if not branches:
        raise ConfigError("no layer was named to put a low-rank branch beside")
    modules = dict(model.named_modules())
    for name in branches:
        if name not in modules or not is_linear(modules[name]):
            raise ModelError(f"{name} is not a linear layer of {type(model).__name__}")
    model.requires_grad_(requires_grad=False)
    groups = RowGroups()
    for name, branch in branches.items():
        _put(model, name, MultiscaleLinear(modules[name], branch, groups))
    return groups


def remove(model: nn.Module) -> dict[str, MultiscaleLinear]:
    """Put the frozen layers back, in place, and return the layers that stood there by name."""
    found = dict(layers(model))
    for name, layer in found.items():
        _put(model, name, layer.base)
    return found


def restore(model: nn.Module, taken: dict[str, MultiscaleLinear]) -> None:
    """Undo :func:`remove`."""
    for name, layer in taken.items():
        _put(model, name, layer)


@torch.no_grad()
def fold(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Add every branch, or the named ones, to its frozen weight and remove it, in place; all of them or none.

    Raises
    ------
    ModelError
        A weight is quantized, or used elsewhere in the model as well; or a name is no multi-scale layer.
    """
    found = dict(layers(model))
    wanted = list(found) if names is None else list(dict.fromkeys(names))
    users_of: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        users_of.setdefault(id(parameter), []).append(key)
    for name in wanted:
        if name not in found:
            raise ModelError(f"{name} is not a multi-scale layer of {type(model).__name__}")
        _check_foldable(found[name].base)
        users = users_of.get(id(found[name].weight), [])
        if len(users) > 1:
            raise ModelError(
                f"{' and '.join(users)} share one weight: folding into it would change both; "
                "save the branch as an adapter instead"
            )
    for name in wanted:
        found[name].weight.copy_(found[name].folded())
        _put(model, name, found[name].base)


def layers(model: nn.Module) -> Iterator[tuple[str, MultiscaleLinear]]:
    """Yield the multi-scale layers of a model with their names."""
    for name, module in model.named_modules():
        if isinstance(module, MultiscaleLinear):
            yield name, module


def is_linear(module: nn.Module) -> bool:
    """Whether a branch can stand beside this module."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def features_of(module: nn.Module) -> tuple[int, int]:
    """Return the in and out features of a linear layer."""
    found: Any = module
    if _is_conv1d(module):
        return int(found.weight.shape[0]), int(found.weight.shape[1])
    return int(found.in_features), int(found.out_features)


def _is_conv1d(module: nn.Module) -> bool:
    # transformers' Conv1D, GPT-2's linear layer with a transposed weight; core does not import transformers
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_plain(module: nn.Module) -> bool:
    # Anything else has a forward of its own (bitsandbytes' and fp8 layers are nn.Linear too), which is called.
    weight: Any = module.weight
    own = _is_conv1d(module) or type(module).forward is nn.Linear.forward
    return own and weight.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_foldable(module: nn.Module) -> None:
    if not _is_plain(module):
        weight: Any = module.weight
        raise ModelError(
            f"a {type(module).__name__} with a weight of {weight.dtype} takes no branch in; load the base in "
            "16 or 32 bits to merge into it"
        )


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)
