"""Models whose weights are spread over processes by FSDP2, as transformers loads them under a ``DistributedConfig``.

The Trainer leaves such a model as it is, so what remains to be done here is small: to work on the part of a tensor that
this process holds, and to put the parts back in order after passes that need no gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from asepsis.core.export import fresh_tensors, mark_fresh
from asepsis.core.lora import insert, layers
from asepsis.errors import BackendError

#: How a model has to be loaded instead.
WAY_OUT = "load it with from_pretrained(..., distributed_config=transformers.distributed.DistributedConfig(fsdp_size=...))"
_ONE = ("tp_size", "pp_size", "ep_size", "dp_replicate_size")
_OFF = ("fsdp_cpu_offload", "fsdp_mixed_precision")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; all of it, where it is not spread over processes.

    The part shares its memory with the tensor.
    """
    spread: Any = tensor
    with torch.no_grad():
        return spread.to_local() if hasattr(spread, "to_local") else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight of a model is spread over processes."""
    return any(hasattr(p, "to_local") for p in model.parameters())


def check_sharded(model: nn.Module, processes: int) -> None:
    """Raise ``BackendError`` where a model's weights are spread in another way than over all processes by FSDP2."""
    config: Any = getattr(getattr(model, "config", None), "distributed_config", None)
    if config is None or not getattr(model, "is_distributed_loading_by_transformers", False):
        raise BackendError(
            f"the model's weights are spread over processes, but not by transformers: {WAY_OUT}"
        )
    other = [f"{name}={getattr(config, name)}" for name in _ONE if getattr(config, name, 1) != 1]
    other += [f"{name}=True" for name in _OFF if getattr(config, name, False)]
    if other:
        raise BackendError(f"{', '.join(other)} is not supported: spread the weights by fsdp_size alone")
    if config.fsdp_size != processes:
        raise BackendError(
            f"fsdp_size={config.fsdp_size} with {processes} processes is not supported; use all of them"
        )


def beside(model: nn.Module) -> list[nn.Parameter]:
    """Return what is trained whole in every process beside spread weights: low-rank factors and other late comers."""
    return [p for p in model.parameters() if p.requires_grad and not hasattr(p, "to_local")]


def share(model: nn.Module) -> None:
    """Give every process the first one's values of what is trained beside spread weights."""
    for parameter in beside(model):
        torch.distributed.broadcast(parameter.data, src=0)


def average_gradients(model: nn.Module, processes: int) -> None:
    """Average over processes the gradients that FSDP2 does not exchange: of what is trained beside spread weights."""
    for parameter in beside(model):
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad.div_(processes)


def settle(model: nn.Module) -> None:
    """Let go of weights that a pass gathered: FSDP2 keeps those of the outermost module for a backward pass to come.

    Until then the module's parameters are the gathered ones, and what is written to them would be lost.
    """
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None and hasattr(module, "unshard"):
            reshard()


def gathered(model: nn.Module) -> nn.Module | None:
    """Return a model of its own with all weights, in CPU memory of the first process; None in the others.

    Every process has to call this.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    settle(model)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() != 0:
        return None
    spread: Any = model
    config = copy.copy(spread.config)
    del config.distributed_config
    kind: Any = type(model).__bases__[-1]  # FSDP2 puts a class of its own before the model's
    with torch.random.fork_rng(devices=[]):
        plain: nn.Module = kind(config)
        mark_fresh(plain, [*fresh_tensors(model)])
        insert(plain, {name: layer.branch for name, layer in layers(model)})
    plain.load_state_dict(state)
    return plain
