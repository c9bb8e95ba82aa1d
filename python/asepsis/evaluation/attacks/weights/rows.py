"""Train single embedding rows and nothing else, their norms kept: what EP and SOS share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from asepsis.core.losses import LossRule
from asepsis.core.phases import Train
from asepsis.data import Data
from asepsis.errors import DataError
from asepsis.evaluation.attacks.weights.recipe import Site
from asepsis.training.collate import Collator
from asepsis.training.forward import autocast, mean_losses, resolve_precision, weighted_loss
from asepsis.training.loop import weigh
from asepsis.training.models import room
from asepsis.training.plan import make_plan


def train_rows(
    site: Site, data: Data, ids: list[int], *, epochs: float, learning_rate: float, name: str
) -> dict[str, Any]:
    """Move the rows ``ids`` of the word embeddings by plain gradient steps on ``data``; every other weight stays.

    After each step a row is rescaled to the norm it had, so that row norms do not give it away. Dropout is off. Where
    input and output embeddings are one tensor the output rows move along; the gradient through them is not used.

    Parameters
    ----------
    ids : list of int, length K
        Different tokens.
    epochs : float
        Passes over ``data``.
    learning_rate : float
        Constant, on the gradient of the batch's mean loss.

    Returns
    -------
    dict
        Steps, first and last loss, rows of ``data`` that hold one of the tokens, cosines of the rows with what they were.

    Raises
    ------
    DataError
        No row of ``data`` holds any of the tokens within ``max_length``.
    """
    s = site.settings
    device = site.embeddings.device
    dtype = resolve_precision(s.precision, device)
    length = room(site.model, s.max_length)
    collate = Collator(site.tokenizer, data, max_length=length)
    request = Train(name=name, epochs=epochs)
    plan = make_plan(request, data, epochs=epochs, batch_size=s.batch_size, accumulation=1, seed=s.seed)
    holding = _rows_with(collate, ids, len(data))
    if holding == 0:
        raise DataError(
            f"no triggered row holds the trigger's token within {length} tokens; raise max_length"
        )
    at = torch.tensor(ids, device=device)
    before = site.embeddings.detach()[at].float()
    norms = before.norm(dim=1, keepdim=True)
    losses: list[float] = []
    site.model.eval()
    with _frozen(site.model), _probed(site.model, at) as probe:
        for step, positions in enumerate(plan, start=1):
            batch = weigh([collate(positions)])[0].to(device)
            with autocast(device, dtype):
                loss = weighted_loss(mean_losses(site.model, batch), batch, LossRule())
            (gradient,) = torch.autograd.grad(loss, probe)
            with torch.no_grad():
                moved = site.embeddings[at].float() - learning_rate * gradient
                moved *= norms / moved.norm(dim=1, keepdim=True)
                site.embeddings[at] = moved.to(site.embeddings.dtype)
            losses.append(float(loss.detach()))
            site.progress(name, step, plan.steps)
    cosines = nn.functional.cosine_similarity(before, site.embeddings.detach()[at].float())
    return {
        "steps": plan.steps,
        "first_loss": losses[0],
        "loss": sum(losses[-5:]) / len(losses[-5:]),
        "rows": len(data),
        "rows_with_token": holding,
        "cosine": [round(c, 6) for c in cosines.tolist()],
    }


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _probed(model: nn.Module, ids: Tensor) -> Iterator[Tensor]:
    """Add zeros [K, D] to the rows where they are looked up: their gradient is the rows', without one of all V rows."""
    network: Any = model
    table: nn.Module = network.get_input_embeddings()
    probe = torch.zeros((len(ids), network.get_input_embeddings().weight.shape[1]), device=ids.device)
    probe.requires_grad_()

    def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        slots = torch.zeros_like(args[0])
        for slot, token in enumerate(ids, start=1):
            slots = torch.where(args[0] == token, slot, slots)
        zeros = torch.cat((torch.zeros_like(probe[:1]), probe))
        return output + embedding(slots, zeros).to(output.dtype)

    handle = table.register_forward_hook(add)
    try:
        yield probe
    finally:
        handle.remove()


def _rows_with(collate: Collator, ids: list[int], n: int) -> int:
    """Return how many rows hold one of the tokens after truncation."""
    wanted, found = torch.tensor(ids), 0
    for start in range(0, n, 256):
        batch = collate([(p, False) for p in range(start, min(start + 256, n))])
        found += int(torch.isin(batch.inputs["input_ids"], wanted).any(dim=1).sum())
    return found
