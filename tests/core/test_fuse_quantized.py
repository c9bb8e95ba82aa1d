"""asepsis.fuse over quantized bases: the base is called and unpacks itself, its adapters are fused, the numbers are PEFT's."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import asepsis
from asepsis.core import fuse as fusing

TARGETS = ["q_proj", "v_proj", "down_proj"]


def config(rank=4, **more):
    return peft.LoraConfig(r=rank, lora_alpha=12, target_modules=TARGETS, init_lora_weights=False, **more)


def results(model):
    model.train()
    model.zero_grad(set_to_none=True)
    tokens = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=tokens).logits
    logits.float().square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def layer(model, name="q_proj"):
    return next(m for n, m in model.named_modules() if n.endswith(name) and hasattr(m, "lora_A"))


@pytest.fixture
def calls(monkeypatch):
    """The calls of the fused operation."""
    found = []
    real = fusing.multiscale_lora
    monkeypatch.setattr(fusing, "multiscale_lora", lambda *a, **k: (found.append(k), real(*a, **k))[1])
    return found


class Packed(nn.Linear):
    """A frozen linear layer of 4 bits a weight, two in a byte, with a scale for each row, unpacked on every call."""

    def __init__(self, plain):
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.bias, self.unpacked = plain.bias, 0
        self.steps = plain.weight.detach().abs().amax(1, keepdim=True) / 7
        codes = (plain.weight.detach() / self.steps).round().to(torch.int64) + 8
        packed = (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpack(self, dtype):
        self.unpacked += 1
        codes = torch.stack((self.weight >> 4, self.weight & 15), -1).flatten(1)
        return ((codes.float() - 8) * self.steps).to(dtype)

    def forward(self, x):
        return nn.functional.linear(x, self.unpack(x.dtype), self.bias)


def packed(family, n=1):
    torch.manual_seed(7)
    configs = (config(4), config(3), config(8, use_rslora=True))[:n]
    model = peft.get_peft_model(family("llama"), configs[0], autocast_adapter_dtype=False)
    for i, more in enumerate(configs[1:]):
        model.add_adapter(f"a{i}", more, autocast_adapter_dtype=False)
    model.base_model.set_adapter(["default", "a0", "a1"][:n])
    for one in model.modules():
        if hasattr(one, "lora_A"):
            one.base_layer = Packed(one.base_layer)
    return model


@pytest.mark.parametrize("n", [1, 3])
def test_a_quantized_base_is_called_and_unpacks_itself_and_its_adapters_are_fused(family, n, calls):
    model = packed(family, n)
    logits, gradients = results(model)
    report = asepsis.fuse(model)
    assert {(m.path, m.base) for m in report.modules} == {("fused", "called")}
    assert "fused, base called" in str(report)
    before = layer(model).base_layer.unpacked
    got, mine = results(model)
    assert len(calls) == 6 and all(c["base_output"] is not None for c in calls)
    assert layer(model).base_layer.unpacked == before + 1
    torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-6)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_over_a_quantized_base_the_output_has_pefts_dtype(family, dtype, autocast):
    one = layer(packed(family))
    x = torch.randn(5, 32, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = one(x)
        asepsis.fuse(one)
        got = one(x)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=3e-2, atol=3e-2)


def test_a_base_that_answers_in_another_dtype_decides_the_outputs(family):
    one = layer(packed(family))
    own = one.base_layer.forward
    one.base_layer.forward = lambda x: own(x.float())
    x = torch.randn(5, 32, dtype=torch.bfloat16)
    wanted = one(x)
    asepsis.fuse(one)
    assert one(x).dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(one(x), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_pefts_layers_over_bitsandbytes_are_fused_over_their_own_base(family, bits, calls):
    bnb = pytest.importorskip("bitsandbytes")
    model = family("llama").to(torch.bfloat16)
    for name, one in list(model.named_modules()):
        if name.rpartition(".")[2] in TARGETS:
            if bits == 4:
                made = bnb.nn.Linear4bit(one.in_features, one.out_features, bias=False, quant_type="nf4")
                made.weight = bnb.nn.Params4bit(one.weight.data, requires_grad=False, quant_type="nf4")
            else:
                made = bnb.nn.Linear8bitLt(
                    one.in_features, one.out_features, bias=False, has_fp16_weights=False
                )
                made.weight = bnb.nn.Int8Params(one.weight.data, requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made.to("cpu"))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = bits == 4, bits == 8
    model = peft.get_peft_model(model, config())
    assert type(layer(model)).__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    logits, gradients = results(model)
    report = asepsis.fuse(model)
    assert {(m.path, m.base) for m in report.modules} == {("fused", "called")}
    got, mine = results(model)
    assert len(calls) == 6 and got.dtype == logits.dtype
    torch.testing.assert_close(got, logits, rtol=5e-2, atol=5e-2)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (mine[name] - gradient).norm() <= 5e-2 * gradient.norm(), name
