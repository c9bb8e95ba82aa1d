"""Tiny random models of the families low-rank branches go into; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

_WIDTH = 32
# what a classifier's checkpoint of the body lacks, so that it is drawn anew
_NEW = ("classifier.", "score.", "pre_classifier.")


def _build(kind: str) -> Any:
    import transformers as t

    encoder = {"vocab_size": 60, "max_position_embeddings": 40, "num_labels": 3, "pad_token_id": 0}
    small = {"hidden_size": _WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    llama = {**encoder, **small, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
    gpt2 = {"vocab_size": 60, "n_positions": 40, "n_embd": _WIDTH, "n_layer": 2, "n_head": 2, "num_labels": 3}
    gpt2 |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    distilbert = {**encoder, "dim": _WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    made: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "bert": (t.BertForSequenceClassification, t.BertConfig, {**encoder, **small}),
        "roberta": (t.RobertaForSequenceClassification, t.RobertaConfig, {**encoder, **small}),
        "distilbert": (t.DistilBertForSequenceClassification, t.DistilBertConfig, distilbert),
        "llama": (t.LlamaForSequenceClassification, t.LlamaConfig, llama),
        "llama-causal": (t.LlamaForCausalLM, t.LlamaConfig, llama),
        "gpt2": (t.GPT2ForSequenceClassification, t.GPT2Config, gpt2),
        "gpt2-causal": (t.GPT2LMHeadModel, t.GPT2Config, gpt2),
    }
    network, config, settings = made[kind]
    return network(config(**settings))


def _family(kind: str, *, seed: int = 0, head_seed: int | None = None) -> Any:
    """Build a model in evaluation mode: the body drawn from ``seed``, a new head from ``head_seed``."""
    torch.manual_seed(seed)
    model = _build(kind)
    if head_seed is not None:
        torch.manual_seed(head_seed)
        other = _build(kind)
        state = model.state_dict()
        state |= {k: v for k, v in other.state_dict().items() if k.startswith(_NEW)}
        model.load_state_dict(state)
    return model.eval()


@pytest.fixture
def family() -> Callable[..., Any]:
    return _family
