"""A second model over the weights of the first: what is put into the one is not in the other."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def shared_view(model: M) -> M:
    """Return a model of its own modules over the same memory, frozen and in evaluation mode.

    Adapters, hooks, replaced modules and ``requires_grad`` flags of the view stay in the view; the weights are not copied,
    so the view costs next to nothing and both may run at the same time. A change of a weight's *values* shows in both:
    whoever wants to change one gives the view a copy of it first, see :func:`own_copy`.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        same = tensor.detach()
        memo[id(tensor)] = (
            nn.Parameter(same, requires_grad=False) if isinstance(tensor, nn.Parameter) else same
        )
    view = copy.deepcopy(model, memo)
    view.requires_grad_(False)
    return view.eval()


def own_copy(module: nn.Module, name: str) -> Tensor:
    """Give a module a parameter of its own memory in place of a shared one, and return it."""
    shared: Tensor = getattr(module, name)
    setattr(module, name, nn.Parameter(shared.detach().clone(), requires_grad=False))
    own: Tensor = getattr(module, name)
    return own
