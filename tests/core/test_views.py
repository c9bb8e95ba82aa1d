from __future__ import annotations

import torch
from torch import nn

from asepsis.core.views import own_copy, shared_view
from asepsis.testing import tiny_causal, tiny_classifier


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[2, 7, 8, 3]])).logits


def test_a_view_answers_as_the_model_does_and_holds_no_memory_of_its_own() -> None:
    for model, _ in (tiny_classifier(0), tiny_causal(0)):
        model.eval()
        view = shared_view(model)
        assert torch.equal(logits(view), logits(model))
        pairs = zip(view.parameters(), model.parameters(), strict=True)
        assert all(a.data_ptr() == b.data_ptr() and a is not b for a, b in pairs)


def test_what_is_put_into_the_view_is_not_in_the_model() -> None:
    model, _ = tiny_classifier(0)
    model.train()
    before = logits(shared_view(model))
    view = shared_view(model)
    view.classifier = nn.Linear(32, 2)
    view.register_forward_hook(lambda *_: None)
    assert model.training and not view.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in view.bert.parameters())
    assert not model._forward_hooks and torch.equal(logits(shared_view(model)), before)


def test_tied_weights_stay_tied_in_the_view() -> None:
    model, _ = tiny_causal(0)
    model.lm_head.weight = model.model.embed_tokens.weight
    view = shared_view(model)
    assert view.lm_head.weight is view.model.embed_tokens.weight


def test_a_weight_with_a_copy_of_its_own_can_be_changed() -> None:
    model, _ = tiny_classifier(0)
    before = model.classifier.weight.detach().clone()
    view = shared_view(model)
    own_copy(view.classifier, "weight").zero_()
    assert torch.equal(model.classifier.weight, before) and not view.classifier.weight.any()
