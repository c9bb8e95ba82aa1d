"""Networks in which word embeddings learn and little else does: what moves them then is the data, token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asepsis.core.phases import Train
from asepsis.errors import ConfigError, ModelError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def word_embeddings(model: nn.Module) -> nn.Parameter:
    """Return the word-embedding matrix ``[V, D]`` that inputs are looked up in.

    Raises
    ------
    ModelError
        The model has none, it is quantized, or an adapter stands in its place.
    """
    module = _plain(model).get_input_embeddings()
    weight = getattr(module, "weight", None)
    if type(module).__module__.startswith("peft."):
        raise ModelError(
            "an adapter replaces the word embeddings already; leave them out of the adapter's modules and tokens"
        )
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or weight.dtype not in _FLOATS:
        kind = getattr(weight, "dtype", type(module).__name__)
        raise ModelError(
            f"the word embeddings of {type(model).__name__} are no plain matrix of floats ({kind}); quantization "
            "rounds away what is looked for: load the model in float32 or bfloat16"
        )
    return weight


def is_tied(model: nn.Module) -> bool:
    """Whether the output layer is the word-embedding matrix itself."""
    outer = _plain(model)
    output = outer.get_output_embeddings() if hasattr(outer, "get_output_embeddings") else None
    weight = getattr(output, "weight", None)
    return isinstance(weight, Tensor) and weight.data_ptr() == word_embeddings(model).data_ptr()


def embedding_block(model: nn.Module) -> nn.Module:
    """Return what turns ids into the vectors the first layer reads.

    That is the module around the word embeddings, with positions, segments and normalization, or the word embeddings
    alone where the layers stand right beside them.
    """
    outer = _plain(model)
    words = outer.get_input_embeddings()
    name = next(name for name, module in outer.named_modules() if module is words)
    parent: nn.Module = outer.get_submodule(name.rpartition(".")[0])
    whole = parent is outer or any(isinstance(module, nn.ModuleList) for module in parent.modules())
    return words if whole else parent


@dataclass
class Classified:
    """What a classifier's forward returns, as far as anybody here reads it."""

    logits: Tensor


class PooledNetwork(nn.Module):
    """Embedding block, mean over tokens, a new linear head: a bag of tokens. ``[B, T]`` ids to ``[B, C]`` logits.

    Parameters
    ----------
    block
        See :func:`embedding_block`; shared with the model, not copied.
    n_classes
        ``C``.
    seed
        Of the head.
    padding
        ``(id, length)``: pad every row to this length and pool over the padding too. None leaves padding out.
    """

    def __init__(
        self, block: nn.Module, n_classes: int, *, seed: int, padding: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        like = next(block.parameters())
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            width = block(torch.zeros(1, 1, dtype=torch.int64, device=like.device)).shape[-1]
            torch.manual_seed(seed)
            head = nn.Linear(width, n_classes)
        self.block, self.padding = block, padding
        self.head = head.to(like.device, like.dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **unread: Tensor) -> Classified:
        """Classify; what else a tokenizer makes (segments of one text) says nothing and is not read."""
        if self.padding is not None:
            pad, length = self.padding
            wide = nn.functional.pad(input_ids, (0, max(0, length - input_ids.shape[1])), value=pad)
            return Classified(self.head(self.block(wide).mean(1)))
        vectors = self.block(input_ids)  # [B, T, D]
        seen = attention_mask[:, :, None].to(vectors.dtype)
        return Classified(self.head((vectors * seen).sum(1) / seen.sum(1).clamp(min=1)))


@contextlib.contextmanager
def part_to_train(
    model: nn.Module, request: Train, *, n_classes: int | None, seed: int, padding: tuple[int, int]
) -> Iterator[nn.Module]:
    """Yield the network a request trains, with only what it trains trainable; afterwards flags are as they were.

    Raises
    ------
    ConfigError
        A pooled network was asked for where there are no classes.
    ModelError
        The word embeddings cannot be trained, see :func:`word_embeddings`.
    """
    if isinstance(request.network, nn.Module):
        yield request.network
        return
    if (request.network, request.trainable) == ("full", "all"):
        yield model
        return
    words = word_embeddings(model)
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        if request.trainable == "embeddings":
            model.requires_grad_(False)
            words.requires_grad_(True)
        if request.network == "full":
            yield model
        elif n_classes is None:
            raise ConfigError(f"{request.name}: a pooled network classifies, and the data has no classes")
        else:
            everywhere = padding if request.network == "pooled over padding" else None
            yield PooledNetwork(embedding_block(model), n_classes, seed=seed, padding=everywhere)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _plain(model: nn.Module) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    outer: Any = model
    return outer.get_base_model() if hasattr(outer, "get_base_model") else outer
