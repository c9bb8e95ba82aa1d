"""Where low-rank branches go: found by what the modules are and where they stand, never by the model's name.

Two placements. ``paper``: ordinary LoRA on the attention's queries and values, and one multi-scale layer right before the
output layer. ``all-linear``: a multi-scale branch on every linear layer of the body.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from asepsis.core.lora import is_linear
from asepsis.errors import ConfigError, ModelError

# What the linear layers that make queries and values are called across transformers; fused ones make keys as well.
_QUERY_AND_VALUE = frozenset(
    [
        "query",
        "value",
        "q_proj",
        "v_proj",
        "query_proj",
        "value_proj",
        "q_lin",
        "v_lin",
        "q",
        "v",
        "c_attn",
        "Wqkv",
        "qkv_proj",
        "query_key_value",
    ]
)

# The authors' scales, by architecture and whether the model is the large one (hidden size from 1024 on).
_SCALES: dict[tuple[str, bool], tuple[float, ...]] = {
    ("bert", False): (1, 4, 8, 12, 16, 20, 24, 28),
    ("bert", True): (1, 2, 3, 4, 5, 6, 7, 8, 9),
    ("roberta", False): (1, 2, 4, 6, 8, 10, 12, 14, 16),
    ("roberta", True): (1, 2, 3, 4, 5, 6, 7, 8, 9),
    ("gpt2", False): (1, 2, 3, 4),
    ("gpt2", True): (1, 2, 3, 4),
    ("llama", False): (1, 2, 3, 4),
    ("llama", True): (1, 2, 3, 4),
}
_LARGE = 1024


def preset_scales(model: nn.Module) -> tuple[float, ...]:
    """Return the scales the paper's code has for this architecture.

    Raises
    ------
    ConfigError
        It has none: give them by hand.
    """
    config: Any = model.config
    family = str(config.model_type)
    found = _SCALES.get((family, int(getattr(config, "hidden_size", 0)) >= _LARGE))
    if found is None:
        families = sorted({name for name, _ in _SCALES})
        raise ConfigError(
            f"there are no preset scales for {family!r} models, only for {', '.join(families)}; set scales, "
            "for example scales=(1, 2, 3, 4)"
        )
    return found


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return name and module of what makes the logits: ``classifier``, ``score`` or the output embeddings.

    Raises
    ------
    ModelError
        The model has none of them.
    """
    for name in ("classifier", "score"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            return name, head
    outer: Any = model
    embeddings = outer.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if embeddings is not None:
        for name, module in model.named_modules():
            if module is embeddings:
                return name, module
    raise ModelError(f"{type(model).__name__} has no classifier, score or output embeddings")


def output_linear(model: nn.Module) -> str:
    """Return the name of the linear layer that makes the logits: the last one of the head."""
    name, head = head_of(model)
    inside: list[str] = [
        f"{name}.{leaf}" if leaf else name for leaf, m in head.named_modules() if is_linear(m)
    ]
    if not inside:
        raise ModelError(f"the head {name} of {type(model).__name__} has no linear layer")
    return inside[-1]


def attention(model: nn.Module) -> list[str]:
    """Return the linear layers that make the attention's queries and values.

    Raises
    ------
    ConfigError
        None has a name this project knows: name them by hand.
    """
    found = [n for n, m in model.named_modules() if is_linear(m) and n.rpartition(".")[2] in _QUERY_AND_VALUE]
    if not found:
        raise ConfigError(
            f"no query or value layer was recognized in {type(model).__name__}; name them in lora_modules"
        )
    return found


def before_head(model: nn.Module) -> str:
    """Return the layer the paper makes multi-scale: the last linear layer before the output layer.

    That is the inner layer of a two-layer head (RoBERTa), a layer between the blocks and the head (BERT's pooler), and
    where a decoder's classification head is alone, that head itself: the paper puts a second linear layer beside it,
    with nothing in between, which is the same family of functions. A causal LM has its last block's last linear layer.
    """
    name, _ = head_of(model)
    output = output_linear(model)
    linears: list[str] = [n for n, m in model.named_modules() if is_linear(m) and n != output]
    within = [n for n in linears if n.startswith(f"{name}.")]
    if within:
        return within[-1]
    blocks = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    # modules stand in the order of use: a projection of the embeddings stands before the blocks
    if linears and not linears[-1].startswith(blocks):
        return linears[-1]
    return output if name in ("classifier", "score") else linears[-1]


def body(model: nn.Module) -> list[str]:
    """Return every linear layer but the head's."""
    name, _ = head_of(model)
    return [
        n for n, m in model.named_modules() if is_linear(m) and n != name and not n.startswith(f"{name}.")
    ]


def matching(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """Return the linear layers whose qualified name ends in one of the given dotted names.

    Raises
    ------
    ConfigError
        A pattern matches nothing: a misspelled layer must not be trained around in silence.
    """
    names = [n for n, m in model.named_modules() if is_linear(m)]
    for pattern in patterns:
        if not any(_ends_in(name, pattern) for name in names):
            raise ConfigError(f"no linear layer of {type(model).__name__} ends in {pattern!r}")
    return [name for name in names if any(_ends_in(name, pattern) for pattern in patterns)]


def _ends_in(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}")
