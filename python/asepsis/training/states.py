"""Losses of a causal language model from its last hidden states, where the logits would only fill the GPU.

The output layer is asked to hand its input on, and :func:`asepsis.kernels.linear_sample_loss` does the rest. That is right
only where the model returns what the layer made untouched, so it is checked on what came back: a model that scales or
caps its logits, or casts them, is run the ordinary way.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asepsis.core.placement import head_of
from asepsis.errors import ModelError
from asepsis.kernels import linear_sample_loss
from asepsis.kernels._dispatch import no_triton
from asepsis.training.collate import Batch

log = logging.getLogger("asepsis")

# output layers whose result the model changes
_changed: WeakSet[nn.Module] = WeakSet()


def losses_without_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Return ``(total [B] fp32, count [B] int64)`` as :func:`asepsis.training.forward.sample_losses` does.

    None where the ordinary way has to be gone: for a classifier, without an NVIDIA GPU, for products in float32, where the
    output layer is no plain ``nn.Linear`` or its weights are spread over processes, and where logits are changed
    afterwards. The last is found out by a forward pass in vain, once a model.
    """
    if batch.labels.ndim != 2 or no_triton(batch.labels) is not None:
        return None
    head = _plain_head(model)
    if head is None:
        return None
    seen: list[tuple[Tensor, bool]] = []
    kind = head.weight.device.type

    def hand_on(hidden: Tensor) -> Tensor:
        seen.append((hidden, torch.is_autocast_enabled(kind)))
        return hidden

    layer: Any = head
    layer.forward = hand_on
    try:
        logits = model(**batch.inputs).logits
    finally:
        del layer.forward
    untouched = len(seen) == 1 and logits is seen[0][0] and logits.shape[:-1] == batch.labels.shape
    if not untouched:
        _changed.add(head)
        log.info(
            "%s changes its logits after the output layer: they are kept in memory", type(model).__name__
        )
        return None
    hidden, autocast = seen[0]
    labels = F.pad(batch.labels[:, 1:], (0, 1), value=-100)
    # as it was in the layer's place: whoever wants the last product in fp32 turns autocast off there alone
    with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=autocast):
        return linear_sample_loss(hidden, head.weight, labels, bias=head.bias)


def _plain_head(model: nn.Module) -> nn.Linear | None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return None  # with find_unused_parameters it would take the output layer for unused
    outer: Any = model
    try:
        _, head = head_of(outer.get_base_model() if hasattr(outer, "get_base_model") else outer)
    except ModelError:
        return None
    if type(head) is not nn.Linear or head in _changed or "forward" in vars(head):
        return None
    weight = head.weight
    whole = type(weight) is nn.Parameter and weight.shape == (head.out_features, head.in_features)
    if not whole or hasattr(weight, "device_mesh") or no_triton(weight) is not None:
        return None
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return head if dtype in (torch.float16, torch.bfloat16) else None
