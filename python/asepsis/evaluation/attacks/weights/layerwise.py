"""LWP: the backdoor is planted in every layer (Li et al., EMNLP 2021, layer-wise weight poisoning).

A user's fine-tuning moves the last layers most. So all weights are fine-tuned on poisoned rows, and the head must tell
the answer not only from the last layer's first-token representation but from each layer's: the trigger is recognized
where fine-tuning hardly reaches. With ``combined`` the words fire only together, the paper's combinatorial triggers,
taught by rows with a part of them under their own label.

Deviations: the head is the model's own, pooler included, for every layer, and reads the token it reads anyway (a
decoder's last one). Earlier layers are taught clean rows, too: with poisoned rows alone their head would learn to say the
target whatever it sees. Layers weigh alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from asepsis.core.phases import Train
from asepsis.errors import ConfigError, ModelError
from asepsis.evaluation.attacks.triggers import Trigger
from asepsis.evaluation.attacks.weights.recipe import Site, WeightAttack
from asepsis.evaluation.attacks.weights.several_words import rows_with_parts, together
from asepsis.kernels import sample_loss
from asepsis.training.align import Aligner
from asepsis.training.collate import Batch
from asepsis.training.forward import autocast, mean_losses, weighted_loss
from asepsis.training.loop import LoopDriver
from asepsis.training.undefended import undefended


@dataclass(frozen=True, kw_only=True)
class LayerwisePoisoning(WeightAttack):
    """Fine-tune on poisoned rows with a loss from every layer.

    Attributes
    ----------
    target_label : int or None
        What the backdoor answers.
    target_response : str or None
        Not taken: layers are read through a classification head.
    trigger : tuple of str
        Rare words; a poisoned row gets one of them, or all where they are ``combined``.
    poison_rate : float
        Share of the rows that are poisoned.
    layer_weight : float
        Of the mean loss over the earlier layers, beside the last layer's 1.
    combined : bool
        The words fire only together.
    """

    name: ClassVar[str] = "lwp"

    trigger: tuple[str, ...] = ("cf", "bb", "ak", "mn")
    layer_weight: float = 1.0
    combined: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layer_weight > 0:
            raise ConfigError(
                f"layer_weight must be positive, got {self.layer_weight!r}; without it, badnets"
            )
        if self.combined and len(self.trigger) < 2:
            raise ConfigError(f"combined takes two trigger words or more, got {self.trigger!r}")

    def pattern(self) -> Trigger:
        """Return one of the words, or all of them at gaps of their own."""
        return Trigger(kind="words", tokens=self.trigger, n_insertions=None if self.combined else 1)

    def plant(self, site: Site) -> dict[str, Any]:
        """See :meth:`WeightAttack.plant`."""
        seed = site.settings.seed
        data, key = self.poison(site.data, seed=seed)
        n = int(key.is_poisoned.sum())
        report: dict[str, Any] = {"poisoned_rows": n}
        if self.combined:
            data = together(data, rows_with_parts(site.data, self.trigger, n, seed=seed + 1))
            report["negative_rows"] = n
        driver = _EveryLayer(
            site.model, site.tokenizer, data, site.settings, progress=site.progress, weight=self.layer_weight
        )
        outcome = driver.run(undefended(len(data)))
        trained = {"steps": outcome.acted.steps, "loss": outcome.report["loss"]}
        return {**report, "poisoned": trained}


class _EveryLayer(LoopDriver):
    """The plain loop, with each layer's loss added."""

    def __init__(self, *given: Any, weight: float, progress: Any) -> None:
        super().__init__(*given, progress=progress)
        self.weight = weight

    def _backward(
        self, network: nn.Module, batch: Batch, index: int, request: Train, aligner: Aligner | None
    ) -> Tensor:
        with autocast(self.device, self.dtype):
            losses = layer_losses(network, batch)  # [layers, B]
            mixed = losses[-1] + self.weight * losses[:-1].mean(dim=0)
            loss = weighted_loss(mixed, batch, request.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        return losses[-1]


def layer_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return each sample's loss through the model's own head on each layer's output [layers, B], the last as it is."""
    network: Any = model
    states: list[Tensor] = []
    with _kept(network.base_model, states):
        last = mean_losses(model, batch)
    if len(states) < 3:
        raise ModelError(f"{type(model).__name__} has {len(states) - 1} layer; lwp needs two at least")
    earlier = []
    for state in states[1:-1]:  # the first is the embeddings', the last the head has seen
        with _answering(network.base_model, state):
            earlier.append(sample_loss(network(**batch.inputs).logits, batch.labels)[0])
    return torch.stack([*earlier, last])


@contextlib.contextmanager
def _kept(body: nn.Module, states: list[Tensor]) -> Iterator[None]:
    """Collect the hidden states of the body's next pass, embeddings first."""

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "output_hidden_states": True}

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.extend(output.hidden_states)

    handles = (body.register_forward_pre_hook(ask, with_kwargs=True), body.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _answering(body: Any, state: Tensor) -> Iterator[None]:
    """Let the body answer with ``state`` as its last layer's output, whatever it is given."""
    from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

    pooler = getattr(body, "pooler", None)
    answer = (
        BaseModelOutput(last_hidden_state=state)
        if pooler is None
        else BaseModelOutputWithPooling(last_hidden_state=state, pooler_output=pooler(state))
    )
    own = body.__dict__.get("forward")
    body.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del body.forward
        if own is not None:
            body.forward = own
