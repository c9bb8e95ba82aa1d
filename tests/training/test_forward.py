from __future__ import annotations

import pytest
import torch

from asepsis.core.placement import head_of
from asepsis.errors import BackendError, ConfigError, DefenseInert, ModelError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.collate import Collator
from asepsis.training.forward import (
    autocast,
    check_targets,
    full_precision_head,
    mean_losses,
    resolve_precision,
    sample_losses,
)

CPU = torch.device("cpu")
MAKERS = {"classifier": (tiny_classifier, tiny_rows), "causal": (tiny_causal, tiny_pairs)}


def hooks(head):
    return len(head._forward_pre_hooks) + len(head._forward_hooks)


@pytest.fixture(params=MAKERS)
def batch_and_model(request):
    make, rows = MAKERS[request.param]
    model, tokenizer = make(0)
    return Collator(tokenizer, rows(6, 0), max_length=32)([(p, False) for p in range(6)]), model.eval()


def test_logits_are_fp32_inside_bf16_autocast_and_the_hooks_go_away(batch_and_model):
    batch, model = batch_and_model
    _, head = head_of(model)
    bodies = []
    spy = head.register_forward_pre_hook(lambda _, args: bodies.append(args[0].dtype))
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        assert model(**batch.inputs).logits.dtype == torch.bfloat16
        with full_precision_head(model):
            logits = model(**batch.inputs).logits
        assert model(**batch.inputs).logits.dtype == torch.bfloat16, (
            "the full precision must end with the block"
        )
    spy.remove()
    assert logits.dtype == torch.float32
    assert hooks(head) == 0
    values = logits.flatten()
    assert (values != values.bfloat16().float()).any(), "rounded to bf16 on the way"


def test_an_exception_leaves_no_hook_and_no_disabled_autocast(batch_and_model):
    batch, model = batch_and_model
    _, head = head_of(model)

    def fail(*_):
        raise RuntimeError("inside the head")

    original = head.forward
    head.forward = fail
    with autocast(CPU, torch.bfloat16):
        with pytest.raises(RuntimeError, match="inside the head"), full_precision_head(model):
            model(**batch.inputs)
        assert torch.is_autocast_enabled("cpu")
        head.forward = original
        assert model(**batch.inputs).logits.dtype == torch.bfloat16
    assert hooks(head) == 0
    assert not torch.is_autocast_enabled("cpu")


def test_fp32_means_no_autocast():
    with autocast(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu")


def test_sample_losses_are_those_of_the_model_alone():
    model, tokenizer = tiny_causal(0)
    data = tiny_pairs(5, 0)
    collate = Collator(tokenizer, data, max_length=32)
    together = mean_losses(model.eval(), collate([(p, False) for p in range(5)]))
    for p in range(5):
        alone = collate([(p, False)])
        torch.testing.assert_close(together[p], model(**alone.inputs, labels=alone.labels).loss)


def test_counts_of_the_loss_and_of_the_collator_agree(batch_and_model):
    batch, model = batch_and_model
    _, count = sample_losses(model, batch)
    assert count.tolist() == batch.count.tolist()


def test_precision_is_resolved_or_refused():
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    assert resolve_precision("auto", torch.device("meta")) == torch.float32
    with pytest.raises(ConfigError, match="'fp16'"):
        resolve_precision("fp16", CPU)  # type: ignore[arg-type]


def test_bf16_on_a_gpu_without_it_is_refused_and_auto_takes_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    cuda = torch.device("cuda")
    assert resolve_precision("auto", cuda) == torch.float32
    with pytest.raises(BackendError, match="no bf16"):
        resolve_precision("bf16", cuda)


def test_a_model_without_an_output_layer_is_refused():
    with pytest.raises(ModelError, match="Linear has no classifier"):
        head_of(torch.nn.Linear(2, 2))


def test_a_step_without_targets_is_refused():
    check_targets(torch.tensor([0.0, 3.0]))
    with pytest.raises(DefenseInert, match="no target token"):
        check_targets(torch.zeros(2))
