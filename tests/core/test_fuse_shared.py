"""asepsis.fuse with an example: layers of one input are computed together, with PEFT's numbers, whatever happens later."""

from __future__ import annotations

import copy
import logging

import peft
import pytest
import torch
from torch import nn

import asepsis
from asepsis.core import fuse as fusing
from asepsis.core import fuse_shared

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]


def adapted(family, *ranks, **more):
    torch.manual_seed(7)
    model = family("llama")
    for i, rank in enumerate(ranks or (4,)):
        config = peft.LoraConfig(
            r=rank, lora_alpha=12, target_modules=TARGETS, init_lora_weights=False, **more
        )
        if i == 0:
            model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        else:
            model.add_adapter(f"a{i}", config, autocast_adapter_dtype=False)
    model.base_model.set_adapter(["default", *(f"a{i}" for i in range(1, len(ranks)))])
    return model


def tokens():
    return torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(1))


def example():
    return {"input_ids": tokens()[:1, :4]}


def results(model, *, train=True):
    model.train(train)
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=tokens()).logits
    logits.float().square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, wanted):
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert got[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the groups that were computed."""
    found = []
    real = fusing.grouped_lora
    monkeypatch.setattr(
        fusing, "grouped_lora", lambda x, group, **k: (found.append(len(group)), real(x, group, **k))[1]
    )
    return found


def layer(model, name):
    return next(m for n, m in model.named_modules() if n.endswith(name) and hasattr(m, "lora_A"))


@pytest.mark.parametrize("ranks", [(4,), (4, 3, 8)])
def test_q_k_v_and_gate_up_are_found_and_logits_and_gradients_are_pefts(family, ranks, calls):
    model = adapted(family, *ranks)
    wanted = results(model)
    report = asepsis.fuse(model, example=example())
    groups = {tuple(name.rpartition(".")[2] for name in m.shares) for m in report.modules}
    assert groups == {("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ()}
    assert "with others of its input" in str(report)
    assert not calls  # the example only looks
    assert_same(results(model), wanted)
    layers = sum(m.name.endswith("q_proj") for m in report.modules)
    assert calls == [3, 2] * layers


def test_the_example_leaves_modes_and_chance_and_gradients_alone(family):
    model = adapted(family, lora_dropout=0.5)
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    asepsis.fuse(model, dropout="shared", example=example())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_an_example_the_model_does_not_take_leaves_it_as_it_was(family):
    model = adapted(family)
    with pytest.raises(ValueError, match="input_ids"):
        asepsis.fuse(model, example={"nonsense": 1})
    assert asepsis.unfuse(model) == 0
    assert not any("forward" in vars(m) for m in model.modules())


def test_without_an_example_and_after_unfuse_nothing_is_shared(family, calls):
    model = adapted(family)
    asepsis.fuse(model, example=example())
    assert not any(m.shares for m in asepsis.fuse(model).modules)
    results(model)
    asepsis.fuse(model, example=example())
    asepsis.unfuse(model)
    results(model)
    assert not calls


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_the_groups(family, reentrant, calls):
    model = adapted(family)
    model.enable_input_require_grads()
    wanted = results(model)
    asepsis.fuse(model, example=example())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(results(model), wanted)
    assert len(calls) == 2 * 2 * len(model.base_model.model.model.layers)


def test_under_autocast_and_without_gradients_groups_compute_as_pefts(family, calls):
    model = adapted(family).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(input_ids=tokens()).logits
        asepsis.fuse(model, example=example())
        got = model(input_ids=tokens()).logits
    assert calls and got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=5e-2, atol=5e-2)


def test_inference_tensors_whose_changes_leave_no_trace_are_not_shared(family, calls):
    model = adapted(family).eval()
    asepsis.fuse(model, example=example())
    with torch.no_grad():
        wanted = model(input_ids=tokens()).logits
    calls.clear()
    with torch.inference_mode():
        got = model(input_ids=tokens()).logits
    assert not calls
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_what_one_layer_does_not_cover_leaves_all_of_its_group_alone(family, calls):
    model = adapted(family)
    asepsis.fuse(model, example=example())
    layer(model, "k_proj").merge()
    merged = results(model, train=False)[0]
    layers = len(model.base_model.model.model.layers)
    assert calls == [2] + [3, 2] * (layers - 1)  # of the first q, k, v none
    layer(model, "k_proj").unmerge()
    torch.testing.assert_close(results(model, train=False)[0], merged, rtol=1e-4, atol=1e-5)


def test_dropout_in_training_is_not_shared(family, calls):
    model = adapted(family, lora_dropout=0.3)
    asepsis.fuse(model, dropout="shared", example=example())
    results(model, train=True)
    assert not calls
    results(model, train=False)
    assert calls


class Fickle(nn.Module):
    """Reads one input with both layers, or two."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.apart, self.written = nn.Linear(6, 5), nn.Linear(6, 3), False, False

    def forward(self, x):
        first = self.a(x)
        if self.written:
            x.mul_(2)
        return torch.cat((first, self.b(x.clone() if self.apart else x)), -1)


def fickle():
    config = peft.LoraConfig(r=2, target_modules=["a", "b"], init_lora_weights=False)
    model = peft.get_peft_model(Fickle(), config)
    return model, model.base_model.model


@pytest.mark.parametrize("change", ["apart", "written"])
def test_a_group_that_no_longer_holds_is_said_and_still_right(change, calls, caplog):
    model, inner = fickle()
    asepsis.fuse(model, example={"x": torch.randn(2, 6)})
    x = torch.randn(4, 6)
    model(x)
    assert calls == [2]
    setattr(inner, change, True)
    fuse_shared._warn.cache_clear()
    caplog.set_level(logging.WARNING, logger="asepsis")
    got = [model(x.clone()) for _ in range(2)]
    asepsis.unfuse(model)
    torch.testing.assert_close(got[0], model(x.clone()))
    torch.testing.assert_close(got[1], got[0])
    assert len([r for r in caplog.records if "computed in vain" in r.getMessage()]) == 1


@pytest.mark.parametrize("change", ["apart", "written"])
def test_layers_of_two_inputs_are_no_group(change):
    model, inner = fickle()
    setattr(inner, change, True)
    assert not any(m.shares for m in asepsis.fuse(model, example={"x": torch.randn(2, 6)}).modules)


def test_a_layer_called_twice_on_one_input_is_no_group_and_gives_both_results():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.a(x) + self.b(x) * self.a(x)

    model = peft.get_peft_model(
        Twice(), peft.LoraConfig(r=2, target_modules=["a", "b"], init_lora_weights=False)
    )
    x = torch.randn(3, 6)
    wanted = model(x)
    assert not any(m.shares for m in asepsis.fuse(model, example={"x": x}).modules)
    torch.testing.assert_close(model(x), wanted)


def test_a_base_with_hooks_is_not_called_out_of_turn():
    model, inner = fickle()
    inner.b.base_layer.register_forward_hook(lambda *_: None)
    assert not any(m.shares for m in asepsis.fuse(model, example={"x": torch.randn(2, 6)}).modules)


def test_outputs_nobody_fetched_are_not_handed_to_a_later_pass(calls):
    model, inner = fickle()
    asepsis.fuse(model, example={"x": torch.randn(2, 6)})
    x = torch.randn(4, 6)
    inner.a(x)  # a pass that broke off
    with torch.no_grad():
        inner.a.lora_A["default"].weight.zero_()
        inner.b.lora_A["default"].weight.zero_()
    got = model(x)
    asepsis.unfuse(model)
    torch.testing.assert_close(got, model(x))
    assert calls == [2, 2]


def test_copies_of_a_model_between_passes_have_groups_of_their_own(calls):
    model, inner = fickle()
    asepsis.fuse(model, example={"x": torch.randn(2, 6)})
    x = torch.randn(4, 6)
    wanted = model(x)
    inner.a(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        inner.b.lora_B["default"].weight.add_(1)
    calls.clear()
    torch.testing.assert_close(twin(x), wanted)
    assert calls == [2]
    assert asepsis.unfuse(twin) == asepsis.unfuse(model) == 2


def test_torch_compile_computes_each_layer_for_itself(calls):
    model, _ = fickle()
    asepsis.fuse(model, example={"x": torch.randn(2, 6)})
    x = torch.randn(4, 6)
    wanted = model(x)
    calls.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)
    assert not calls
