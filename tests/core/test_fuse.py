"""asepsis.fuse: PEFT's numbers from the fused operation, everything else of PEFT left as it was, and undone exactly."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

import asepsis
from asepsis.core import fuse as fusing
from asepsis.errors import ConfigError, ModelError

TARGETS = ["q_proj", "v_proj", "down_proj"]


def config(rank=4, **more):
    return peft.LoraConfig(
        **{"r": rank, "lora_alpha": 12, "target_modules": TARGETS, "init_lora_weights": False, **more}
    )


def adapted(family, *configs, kind="llama", dtype=torch.float32):
    model = family(kind)
    torch.manual_seed(7)
    names = ["default", "second", "third"][: len(configs)]
    model = peft.get_peft_model(model, configs[0], autocast_adapter_dtype=False)
    for name, more in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, more, autocast_adapter_dtype=False)
    model.base_model.set_adapter(names)
    return model.to(dtype)


def three():
    return config(4), config(3, lora_alpha=5), config(8, use_rslora=True)


def tokens():
    return torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(1))


def results(model, *, train=True):
    model.train(train)
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=tokens()).logits
    logits.float().square().mean().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    return logits.detach(), gradients


def layer(model, name="q_proj"):
    return next(m for n, m in model.named_modules() if n.endswith(name) and hasattr(m, "lora_A"))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_logits_and_gradients_are_pefts(family, n, train):
    model = adapted(family, *three()[:n])
    logits, gradients = results(model, train=train)
    report = asepsis.fuse(model)
    assert len(report.fused) == 6 and not report.left
    assert {m.rank for m in report.modules} == {4 if n == 1 else 15}
    got, mine = results(model, train=train)
    torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-6)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("n", [1, 3])
def test_in_bfloat16_a_layer_is_as_close_to_float64_as_pefts(family, n):
    model = adapted(family, *three()[:n], dtype=torch.bfloat16)
    exact = copy.deepcopy(layer(model)).double()
    x = torch.randn(40, 32, dtype=torch.bfloat16)
    upstream = torch.randn(40, 32, dtype=torch.bfloat16)

    def run(module, dtype):
        rows = x.detach().to(dtype).requires_grad_()
        module.zero_grad(set_to_none=True)
        out = module(rows)
        out.backward(upstream.to(dtype))
        factors = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        return [t.double() for t in (out.detach(), rows.grad, *factors)]

    truth, peer = run(exact, torch.float64), run(layer(model), torch.bfloat16)
    asepsis.fuse(model)
    for got, own, wanted in zip(run(layer(model), torch.bfloat16), peer, truth, strict=True):
        assert (got - wanted).norm() <= 2 * (own - wanted).norm() + 2**-9 * wanted.norm()


def test_float32_adapters_on_a_16_bit_model_keep_dtypes(family):
    model = family("llama").to(torch.bfloat16)
    model = peft.get_peft_model(model, config())  # as shipped: adapters are raised to float32
    logits, gradients = results(model)
    asepsis.fuse(model)
    got, mine = results(model)
    assert got.dtype == logits.dtype
    assert {n: g.dtype for n, g in mine.items()} == {n: g.dtype for n, g in gradients.items()}
    torch.testing.assert_close(got, logits, rtol=5e-2, atol=5e-2)


def test_under_autocast_the_fused_layers_compute_as_pefts(family):
    model = adapted(family, *three())
    with torch.autocast("cpu", torch.bfloat16):
        wanted = layer(model)(torch.ones(2, 32))
        asepsis.fuse(model)
        got = layer(model)(torch.ones(2, 32))
    assert got.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, rtol=3e-2, atol=3e-2)


def test_names_files_and_classes_stay_and_unfuse_leaves_nothing(family, tmp_path):
    model = adapted(family, *three())
    before = results(model)
    state, classes = model.state_dict(), [type(m) for m in model.modules()]
    attributes = [set(m.__dict__) for m in model.modules()]
    model.save_pretrained(tmp_path / "before")
    asepsis.fuse(model)
    assert list(model.state_dict()) == list(state)
    assert [type(m) for m in model.modules()] == classes
    model.save_pretrained(tmp_path / "fused")
    files = sorted(p.relative_to(tmp_path / "before") for p in (tmp_path / "before").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "fused" / file).read_bytes()
    assert asepsis.unfuse(model) == 6
    assert [set(m.__dict__) for m in model.modules()] == attributes
    after = results(model)
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(before[1][n], after[1][n]) for n in before[1])
    assert asepsis.unfuse(model) == 0


def test_fusing_twice_is_fusing_once(family):
    model = adapted(family, config())
    assert asepsis.fuse(model) == asepsis.fuse(model)
    assert asepsis.unfuse(model) == 6


@pytest.fixture
def calls(monkeypatch):
    """How often the fused operation ran."""
    found = []
    real = fusing.multiscale_lora

    def counted(*args, **kwargs):
        found.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(fusing, "multiscale_lora", counted)
    return found


def same(model, fused_calls, calls):
    """The model as it stands gives PEFT's logits with this many calls of the operation."""
    calls.clear()
    model.eval()
    got = model(input_ids=tokens()).logits
    assert len(calls) == fused_calls
    peers = [(m, m.__dict__.pop("forward")) for m in model.modules() if fusing._is_fused(m)]
    torch.testing.assert_close(got, model(input_ids=tokens()).logits, rtol=1e-5, atol=1e-5)
    for module, forward in peers:
        module.forward = forward


def test_what_is_switched_later_is_followed_call_by_call(family, calls):
    model = adapted(family, *three())
    asepsis.fuse(model)
    same(model, 6, calls)
    model.set_adapter("second")
    same(model, 6, calls)
    layer(model).set_scale("second", 7.0)
    same(model, 6, calls)
    with model.disable_adapter():
        same(model, 0, calls)
    model.merge_adapter(["second"])
    same(model, 0, calls)
    model.unmerge_adapter()
    same(model, 6, calls)
    model.delete_adapter("third")
    same(model, 6, calls)


def test_a_batch_of_mixed_adapters_goes_pefts_way(family, calls):
    model = adapted(family, *three()).eval()
    names = ["default", "second", "__base__"]
    wanted = model(input_ids=tokens(), adapter_names=names).logits
    asepsis.fuse(model)
    calls.clear()
    assert torch.equal(model(input_ids=tokens(), adapter_names=names).logits, wanted)
    assert not calls


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"use_dora": True}, "no plain LoRA .Dora"),
        ({"lora_bias": True, "target_modules": ["query"]}, "lora_bias"),
    ],
)
def test_a_model_without_any_plain_lora_is_refused_with_the_reason_and_left_as_it_was(
    family, more, reason, calls
):
    kind = "bert" if "lora_bias" in more else "llama"
    model = adapted(family, config(**more), kind=kind).eval()
    wanted = model(input_ids=tokens()).logits
    with pytest.raises(ModelError, match=reason):
        asepsis.fuse(model)
    assert torch.equal(model(input_ids=tokens()).logits, wanted)
    assert not calls
    assert asepsis.unfuse(model) == 0


def test_one_adapter_that_is_no_plain_lora_keeps_its_layers_with_peft(family, calls):
    model = adapted(family, config(), config(use_dora=True, target_modules=["v_proj"]))
    wanted = results(model)[0]
    report = asepsis.fuse(model)
    assert len(report.fused) == 4
    assert all("adapter second is no plain LoRA (Dora" in reason for reason in report.left.values())
    calls.clear()
    torch.testing.assert_close(results(model)[0], wanted, rtol=1e-5, atol=1e-6)
    assert len(calls) == 4


def test_each_kind_of_module_is_reported_with_its_path(family):
    settings = config(target_modules=[*TARGETS, "embed_tokens"], modules_to_save=["score"])
    report = asepsis.fuse(adapted(family, settings))
    assert len(report.fused) == 6
    assert sorted(reason.split(":")[0] for reason in report.left.values()) == [
        "LoRA Embedding",
        "ModulesToSaveWrapper",
    ]
    text = str(report)
    assert "6 of 8 modules are fused" in text and "a lookup is no product" in text


def test_ranks_and_alphas_may_differ_by_layer(family):
    settings = config(rank_pattern={"v_proj": 7}, alpha_pattern={"down_proj": 3})
    model = adapted(family, settings)
    wanted = results(model)[0]
    report = asepsis.fuse(model)
    assert {m.rank for m in report.modules} == {4, 7}
    torch.testing.assert_close(results(model)[0], wanted, rtol=1e-5, atol=1e-6)


def test_a_convolution_is_left(calls):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.linear(self.convolution(x).mean((2, 3)))

    model = peft.get_peft_model(Net(), config(target_modules=["convolution", "linear"]))
    report = asepsis.fuse(model)
    assert len(report.fused) == len(report.left) == 1
    assert "a convolution is no linear layer" in str(report)
    model(torch.randn(2, 3, 8, 8))
    assert len(calls) == 1


def test_the_transposed_layers_of_gpt2_are_fused(family):
    model = adapted(family, config(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), kind="gpt2")
    logits, gradients = results(model, train=False)
    assert not asepsis.fuse(model).left
    got, mine = results(model, train=False)
    torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


def test_dropout_in_training_is_pefts_unless_one_mask_is_asked_for(family, calls):
    model = adapted(family, config(lora_dropout=0.5))
    report = asepsis.fuse(model)
    assert {m.path for m in report.modules} == {"fused in evaluation"}
    assert "dropout='shared'" in str(report)
    results(model, train=True)
    assert not calls
    results(model, train=False)
    assert len(calls) == 6
    assert {m.path for m in asepsis.fuse(model, dropout="shared").modules} == {"fused"}
    calls.clear()
    results(model, train=True)
    assert [c["dropout"] for c in calls] == [0.5] * 6
    assert len({int(c["seed"]) for c in calls}) == 6


def test_a_shared_mask_keeps_the_mean_and_follows_torchs_generator(family):
    model = adapted(family, config(lora_dropout=0.3), config(lora_dropout=0.3))
    asepsis.fuse(model, dropout="shared")
    one = layer(model)
    x = torch.ones(2000, 32)
    with torch.no_grad():
        wanted = one.eval()(x[:1])
        one.train()
        torch.manual_seed(0)
        first, second = one(x), one(x)
        torch.manual_seed(0)
        assert torch.equal(one(x), first)
    assert not torch.equal(first, second)
    spread = first.std(0) / 2000**0.5
    assert bool(((first.mean(0) - wanted[0]).abs() < 6 * spread).all())


def test_rates_that_differ_cannot_share_a_mask(family):
    model = adapted(family, config(lora_dropout=0.3), config(lora_dropout=0.1))
    report = asepsis.fuse(model, dropout="shared")
    assert {m.path for m in report.modules} == {"fused in evaluation"}
    assert "different rates: 0.3, 0.1" in str(report)


def test_hooks_of_the_base_run_and_a_trained_base_gets_its_gradient(family, calls):
    model = adapted(family, config())
    base, seen = layer(model).base_layer, []
    base.register_forward_hook(lambda *_: seen.append(1))
    other = layer(model, "v_proj").base_layer
    other.weight.requires_grad_()
    logits, gradients = results(model)
    seen.clear()
    asepsis.fuse(model)
    got, mine = results(model)
    assert len(seen) == 1 and len(calls) == 6
    torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-6)
    (name,) = (n for n in gradients if n.endswith("v_proj.base_layer.weight"))
    torch.testing.assert_close(mine[name], gradients[name], rtol=1e-4, atol=1e-6)


def test_hooks_of_a_factor_run(family, calls):
    model, seen = adapted(family, config()), []
    layer(model).lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    report = asepsis.fuse(model)
    assert "hooks" in next(iter(report.left.values()))
    results(model)
    assert len(seen) == 1 and len(calls) == 5


def test_a_forward_that_somebody_else_replaced_is_left_alone(family):
    model = adapted(family, config())
    one = layer(model)
    own = one.forward
    one.forward = lambda *args, **kwargs: own(*args, **kwargs)
    report = asepsis.fuse(model)
    assert len(report.left) == 1 and "replaced" in next(iter(report.left.values()))
    replaced = one.forward
    asepsis.unfuse(model)
    assert one.forward is replaced


def test_gradient_checkpointing_gives_the_same_gradients(family):
    model = adapted(family, config(lora_dropout=0.2))
    asepsis.fuse(model, dropout="shared")
    found = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        found.append(results(model)[1])
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_a_copy_of_a_fused_model_is_its_own(family, calls):
    model = adapted(family, config())
    asepsis.fuse(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        layer(model).lora_B["default"].weight.zero_()
    assert layer(twin).forward.__self__ is layer(twin)
    assert not torch.equal(layer(twin)(torch.ones(1, 32)), layer(model)(torch.ones(1, 32)))
    assert asepsis.unfuse(twin) == 6
    assert asepsis.unfuse(model) == 6


def test_a_compiled_fused_layer_is_one_graph(family):
    model = adapted(family, *three())
    asepsis.fuse(model)
    one, x = layer(model), torch.randn(5, 32)
    wanted = one(x)
    compiled = torch.compile(one, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"dropout": "mine"}, {"backend": "cuda"}])
def test_a_wrong_setting_is_refused(family, wrong):
    model = adapted(family, config())
    with pytest.raises(ConfigError):
        asepsis.fuse(model, **wrong)
        layer(model)(torch.ones(1, 32))


def test_a_model_without_anything_to_fuse_is_an_error(family):
    with pytest.raises(ModelError, match="no LoRA layer"):
        asepsis.fuse(family("llama"))
    only = peft.get_peft_model(family("llama"), config(target_modules=["embed_tokens"]))
    with pytest.raises(ModelError, match="a lookup is no product"):
        asepsis.fuse(only)
