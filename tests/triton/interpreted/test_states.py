"""A causal language model's losses without its logits are those with them, or the ordinary way is gone."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from asepsis.training import states
from asepsis.training.collate import Batch
from asepsis.training.forward import autocast, full_precision_head, losses_of, sample_losses

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def llama(dtype=torch.bfloat16, **more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **more)).to(dtype).eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 300, (3, 11), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[2, 7:] = -100
    n = len(ids)
    return Batch(
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        labels=labels,
        count=(labels[:, 1:] != -100).sum(1),
        isolated=torch.zeros(n, dtype=torch.bool),
        sample_id=torch.arange(n),
        weight=torch.ones(n),
    )


def both_ways(model, given):
    wanted = losses_of(model(**given.inputs).logits, given)
    wanted[0].sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    lean = states.losses_without_logits(model, given)
    assert lean is not None
    lean[0].sum().backward()
    return wanted, lean, gradients


@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_every_gradient_are_those_of_the_logits(tied):
    model, given = llama(tie_word_embeddings=tied), batch()
    wanted, lean, gradients = both_ways(model, given)
    assert torch.equal(lean[1], wanted[1])
    torch.testing.assert_close(lean[0], wanted[0], rtol=2e-3, atol=0)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 3e-2 * gradients[name].norm(), name
    assert "forward" not in vars(model.lm_head)
    assert model(**given.inputs).logits.shape == (3, 11, 300)


def test_under_autocast_a_float32_model_is_multiplied_in_bf16_and_its_output_layer_in_full_where_wanted():
    model, given = llama(torch.float32), batch()
    with torch.no_grad(), autocast(torch.device("cpu"), torch.bfloat16):
        wanted, lean = losses_of(model(**given.inputs).logits, given), sample_losses(model, given)
        torch.testing.assert_close(lean[0], wanted[0], rtol=2e-3, atol=0)
        with full_precision_head(model):
            wanted, lean = losses_of(model(**given.inputs).logits, given), sample_losses(model, given)
            torch.testing.assert_close(lean[0], wanted[0], rtol=1e-6, atol=0)
    assert states.losses_without_logits(model, given) is None  # products in float32


def test_a_model_that_caps_its_logits_is_found_out_said_and_run_the_ordinary_way(caplog):
    caplog.set_level(logging.INFO, logger="asepsis")
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=5.0)).to(torch.bfloat16).eval()
    given, passes = batch(), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    wanted = losses_of(model(**given.inputs).logits, given)[0]
    passes.clear()
    for _ in range(2):
        assert torch.equal(sample_losses(model, given)[0], wanted)
    assert len(passes) == 3  # one in vain
    said = [r.getMessage() for r in caplog.records if "changes its logits" in r.getMessage()]
    assert len(said) == 1


def test_an_output_layer_that_is_more_than_a_product_is_left_alone():
    model, given = llama(), batch()

    class Wrapped(nn.Linear):
        pass

    model.lm_head.__class__ = Wrapped
    assert states.losses_without_logits(model, given) is None
    model.lm_head.__class__ = nn.Linear
    model.lm_head.forward = lambda x: nn.Linear.forward(
        model.lm_head, x
    )  # as a library that patches forward does
    assert states.losses_without_logits(model, given) is None
    del model.lm_head.forward
    assert states.losses_without_logits(model, given) is not None


def test_an_error_in_the_model_leaves_its_output_layer_as_it_was():
    model, given = llama(), batch()
    handle = model.model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        states.losses_without_logits(model, given)
    handle.remove()
    assert "forward" not in vars(model.lm_head)


def test_without_a_gpu_the_logits_are_made(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert states.losses_without_logits(llama(), batch()) is None
