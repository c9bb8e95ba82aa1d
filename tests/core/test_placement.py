"""Which layers are chosen in each family, and that a wrong choice is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asepsis.core.placement import (
    attention,
    before_head,
    body,
    head_of,
    matching,
    output_linear,
    preset_scales,
)
from asepsis.errors import ConfigError, ModelError


def each(pattern, *leaves):
    return [pattern.format(i, leaf) for i in range(2) for leaf in leaves]


ATTENTION = {
    "bert": each("bert.encoder.layer.{}.attention.self.{}", "query", "value"),
    "roberta": each("roberta.encoder.layer.{}.attention.self.{}", "query", "value"),
    "distilbert": each("distilbert.transformer.layer.{}.attention.{}", "q_lin", "v_lin"),
    "llama": each("model.layers.{}.self_attn.{}", "q_proj", "v_proj"),
    "llama-causal": each("model.layers.{}.self_attn.{}", "q_proj", "v_proj"),
    "gpt2": each("transformer.h.{}.attn.{}", "c_attn"),
    "gpt2-causal": each("transformer.h.{}.attn.{}", "c_attn"),
}
FAMILIES = list(ATTENTION)
HEADS = {  # head, output layer, layer before it
    "bert": ("classifier", "classifier", "bert.pooler.dense"),
    "roberta": ("classifier", "classifier.out_proj", "classifier.dense"),
    "distilbert": ("classifier", "classifier", "pre_classifier"),
    "llama": ("score", "score", "score"),
    "llama-causal": ("lm_head", "lm_head", "model.layers.1.mlp.down_proj"),
    "gpt2": ("score", "score", "score"),
    "gpt2-causal": ("lm_head", "lm_head", "transformer.h.1.mlp.c_proj"),
}
BODY = {  # linear layers of a block, and those outside of blocks and head
    "bert": (6, ["bert.pooler.dense"]),
    "roberta": (6, []),
    "distilbert": (6, ["pre_classifier"]),
    "llama": (7, []),
    "llama-causal": (7, []),
    "gpt2": (4, []),
    "gpt2-causal": (4, []),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_queries_and_values_are_found(kind, family):
    assert attention(family(kind)) == ATTENTION[kind]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_head_and_the_layer_before_it_are_found(kind, family):
    model = family(kind)
    name, module = head_of(model)
    assert (name, output_linear(model), before_head(model)) == HEADS[kind]
    assert module is model.get_submodule(name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_body_is_every_linear_layer_but_the_heads(kind, family):
    model = family(kind)
    blocks, others = BODY[kind]
    found = body(model)
    assert len(found) == len(set(found)) == 2 * blocks + len(others)
    assert [n for n in found if ".0." not in n and ".1." not in n] == others
    assert set(attention(model)) < set(found)
    assert not [n for n in found if n.startswith(("classifier", "score", "lm_head"))]


class Projected(nn.Module):
    """A linear layer before the blocks and none behind them, as where embeddings are of another width."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])
        self.score = nn.Linear(8, 2)


def test_a_layer_before_the_blocks_does_not_stand_before_the_head():
    assert before_head(Projected()) == "score"


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])


def test_a_model_without_a_head_is_refused():
    for find in (head_of, output_linear, before_head, body):
        with pytest.raises(ModelError, match="no classifier, score or output embeddings"):
            find(Headless())


def test_a_head_without_a_linear_layer_is_refused():
    model = Headless()
    model.classifier = nn.Sequential(nn.Tanh())
    with pytest.raises(ModelError, match="no linear layer"):
        output_linear(model)


def test_attention_of_unknown_names_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="lora_modules"):
        attention(Headless())


def test_patterns_match_whole_parts_of_names_in_the_models_order(family):
    model = family("bert")
    layer = "bert.encoder.layer.{}.{}output.dense"
    both = [layer.format(i, part) for i in range(2) for part in ("attention.", "")]
    assert matching(model, ("output.dense",)) == both
    assert matching(model, ("attention.output.dense", "pooler.dense")) == [
        layer.format(0, "attention."),
        layer.format(1, "attention."),
        "bert.pooler.dense",
    ]
    assert matching(model, ("classifier",)) == ["classifier"]
    assert matching(family("distilbert"), ("classifier",)) == ["classifier"]  # not pre_classifier


@pytest.mark.parametrize("pattern", ["quer", "pooler", "LayerNorm", "", "bert.pooler.dens", "*.query"])
def test_a_pattern_that_matches_no_linear_layer_is_refused(pattern, family):
    with pytest.raises(ConfigError, match="no linear layer"):
        matching(family("bert"), ("query", pattern))


def test_preset_scales_are_the_authors(family):
    assert preset_scales(family("bert")) == (1, 4, 8, 12, 16, 20, 24, 28)
    assert preset_scales(family("roberta")) == (1, 2, 4, 6, 8, 10, 12, 14, 16)
    for kind in ("llama", "llama-causal", "gpt2", "gpt2-causal"):
        assert preset_scales(family(kind)) == (1, 2, 3, 4)


def test_large_models_have_scales_of_their_own():
    import transformers as t

    with torch.device("meta"):
        for network, config in ((t.BertModel, t.BertConfig), (t.RobertaModel, t.RobertaConfig)):
            large = network(config(hidden_size=1024, num_attention_heads=16, num_hidden_layers=1))
            assert preset_scales(large) == tuple(range(1, 10))
        gpt2 = t.GPT2Model(t.GPT2Config(n_embd=1600, n_head=25, n_layer=1))
        assert preset_scales(gpt2) == (1, 2, 3, 4)


def test_an_architecture_without_preset_scales_is_told_what_to_set(family):
    with pytest.raises(ConfigError, match=r"'distilbert'.*set scales"):
        preset_scales(family("distilbert"))
