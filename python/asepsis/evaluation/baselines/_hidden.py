"""What the output layer of a classifier reads of each row: the pooled hidden state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asepsis.core.placement import output_linear
from asepsis.data import Data
from asepsis.errors import DataError
from asepsis.training.collate import Collator
from asepsis.training.models import room


@torch.no_grad()
def pooled_states(
    model: Any, tokenizer: Any, data: Data, *, max_length: int = 128, batch_size: int = 64
) -> NDArray[np.float32]:
    """Return the input of the last linear layer for each row, float32 [N, H]; dropout is off.

    BERT's pooler output, the inner layer of RoBERTa's head, or, where a decoder's head reads every token, the state of the
    last one.

    Raises
    ------
    DataError
        The rows have responses: there is no one state that says what a row is.
    """
    if data.task != "classification":
        raise DataError(
            f"{data.source}: pooled states are those of a classifier, and these rows have responses"
        )
    head = dict(model.named_modules())[output_linear(model)]
    device = next(model.parameters()).device
    collate = Collator(tokenizer, data, max_length=room(model, max_length))
    read: list[Tensor] = []
    states: list[Tensor] = []
    order = np.argsort([len(text) for text in data.texts], kind="stable")
    was_training = model.training
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model.eval()
    try:
        for start in range(0, len(data), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([(int(p), False) for p in rows]).to(device)
            read.clear()
            model(**batch.inputs)
            found = read[-1]
            if found.ndim == 3:
                last = batch.inputs["attention_mask"].sum(dim=1) - 1
                found = found[torch.arange(len(found), device=device), last]
            states.append(found.float().cpu())
    finally:
        handle.remove()
        model.train(was_training)
    return np.asarray(torch.cat(states).numpy()[np.argsort(order)])
