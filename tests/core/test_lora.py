"""Multi-scale layers: what they compute, what they train, and that they leave no trace when taken out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from asepsis.core.export import load_multiscale, save_adapter
from asepsis.core.lora import Branch, MultiscaleLinear, RowGroups, fold, insert, layers, remove, restore
from asepsis.core.placement import attention, before_head, body, head_of, output_linear
from asepsis.errors import ConfigError, ModelError

FAMILIES = ["bert", "roberta", "distilbert", "llama", "gpt2", "llama-causal", "gpt2-causal"]
INPUTS = {
    "input_ids": torch.arange(3, 27).view(3, 8),
    "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6]),
}
SEVERAL = Branch(rank=2, alpha=6.0, scales=(1.0, 4.0, 8.0))
BERT_BASE = (1, 4, 8, 12, 16, 20, 24, 28)


def paper(model):
    chosen = dict.fromkeys(attention(model), Branch(rank=8, alpha=32.0))
    chosen[before_head(model)] = SEVERAL
    if head_of(model)[0] in ("classifier", "score"):
        chosen.setdefault(output_linear(model), Branch(full=True))
    return chosen


@torch.no_grad()
def stir(model, size=0.3):
    for _, layer in layers(model):
        for factor in (layer.lora_A, layer.lora_B):
            if factor.requires_grad:
                factor.normal_(std=size)
    return model


def conv1d(inputs, outputs):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


def transcription(x, weight, bias, factor_l, factor_r, band, rho, alpha):
    """The authors' layer as it is specified: the whole matrix R diag(k) L, made anew for each input."""
    k = torch.cat([torch.full((rho,), float(s), dtype=x.dtype) for s in band])
    return x @ weight.T + bias + alpha / rho * (x @ (factor_r @ torch.diag(k) @ factor_l).T)


@pytest.mark.parametrize("make", [nn.Linear, conv1d])
@pytest.mark.parametrize("shape", [(5, 12), (3, 4, 12)])
def test_the_layer_is_the_specified_one(make, shape):
    layer = MultiscaleLinear(make(12, 7), SEVERAL)
    nn.init.normal_(layer.base.bias)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 7)
    layer(x).backward(upstream)
    weight = layer.weight if make is nn.Linear else layer.weight.T
    exact = [t.detach().double().requires_grad_() for t in (x, layer.lora_A, layer.lora_B)]
    y = transcription(exact[0], weight.double(), layer.bias.double(), *exact[1:], (1, 4, 8), 2, 6.0)
    y.backward(upstream.double())
    torch.testing.assert_close(layer(x).double(), y, rtol=1e-5, atol=1e-5)
    for got, wanted in zip((x, layer.lora_A, layer.lora_B), exact, strict=True):
        torch.testing.assert_close(got.grad.double(), wanted.grad, rtol=1e-5, atol=1e-4)
    assert layer.base.weight.grad is None
    delta = 6.0 / 2 * (exact[2] * torch.tensor([1.0, 1, 4, 4, 8, 8]).double()) @ exact[1]
    torch.testing.assert_close(layer.delta().double(), delta, rtol=1e-5, atol=1e-5)


# the specification's table, measured on the authors' code
@pytest.mark.parametrize(
    ("width", "scales", "wanted"),
    [(768, BERT_BASE, 1.205), (1024, range(1, 10), 0.351), (768, (1, 2, 4, 6, 8, 10, 12, 14, 16), 0.681)],
)
def test_the_reference_start_has_the_spread_of_the_authors(width, scales, wanted):
    scales = tuple(map(float, scales))
    branch = Branch(rank=1, alpha=6.0, scales=scales, init="reference")
    layer = MultiscaleLinear(nn.Linear(width, width), branch)
    assert layer.delta().std().item() == pytest.approx(wanted, rel=0.05)
    for factor, bound in ((layer.lora_A, 1 / math.sqrt(width)), (layer.lora_B, 1 / math.sqrt(len(scales)))):
        assert 0.98 * bound < factor.abs().max().item() <= bound
        assert factor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert torch.equal(layer.scale, 6 * torch.tensor(scales))


def test_alpha_is_divided_by_the_rank_of_one_scale_and_not_by_the_number_of_scales():
    layer = MultiscaleLinear(nn.Linear(4, 4), Branch(rank=2, alpha=6.0, scales=(1.0, 5.0, 7.0)))
    assert layer.scale.tolist() == [3, 3, 15, 15, 21, 21]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"alpha": math.inf},
        {"scales": ()},
        {"scales": (1.0, -2.0)},
        {"scales": (math.nan,)},
        {"init": "ones"},
    ],
)
def test_an_impossible_branch_is_refused(wrong):
    with pytest.raises(ConfigError):
        Branch(**wrong)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_zero_start_leaves_the_logits_as_they_are_to_the_bit(kind, family):
    model = family(kind)
    wanted = logits(model)
    insert(model, paper(model) | dict.fromkeys(set(body(model)) - set(paper(model)), SEVERAL))
    assert torch.equal(logits(model), wanted)


H, RANK, Q = 32, 8, 6
COUNTS = {  # queries and values, the multi-scale layer, the head's weight
    "bert": (4 * RANK * (H + H), Q * (H + H), 3 * H),
    "roberta": (4 * RANK * (H + H), Q * (H + H), 3 * H),
    "distilbert": (4 * RANK * (H + H), Q * (H + H), 3 * H),
    "llama": (2 * RANK * (H + H) + 2 * RANK * (H + 16), Q * (H + 3), 0),
    "llama-causal": (2 * RANK * (H + H) + 2 * RANK * (H + 16), Q * (48 + H), 0),
    "gpt2": (2 * RANK * (H + 3 * H), Q * (H + 3), 0),
    "gpt2-causal": (2 * RANK * (H + 3 * H), Q * (4 * H + H), 0),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_only_factors_are_trained_and_there_are_as_many_as_computed_by_hand(kind, family):
    model = family(kind)
    branches = paper(model)
    insert(model, branches)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    full = {n for n, b in branches.items() if b.full}
    assert set(trained) == {f"{n}.lora_A" for n in branches} | {f"{n}.lora_B" for n in set(branches) - full}
    assert sum(p.numel() for p in trained.values()) == sum(COUNTS[kind])
    assert {p.dtype for p in trained.values()} == {torch.float32}
    model.train()(**INPUTS).logits.square().sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(trained)


def test_parameter_counts_of_the_real_sizes_are_the_papers():
    import transformers as t

    cases = [
        (t.BertForSequenceClassification, t.BertConfig(), BERT_BASE, 294_912, 12_288),
        (t.RobertaForSequenceClassification, t.RobertaConfig(), range(1, 10), 294_912, 13_824),
        (
            t.BertForSequenceClassification,
            t.BertConfig(
                hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
            ),
            range(1, 10),
            786_432,
            18_432,
        ),
    ]
    for kind, config, scales, lora, several in cases:
        with torch.device("meta"):
            model = kind(config)
            branch = Branch(rank=1, alpha=6.0, scales=tuple(map(float, scales)))
            insert(model, dict.fromkeys(attention(model), Branch(rank=8)) | {before_head(model): branch})
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == lora + several


@pytest.mark.parametrize("make", [nn.Linear, conv1d])
def test_a_full_branch_trains_like_the_weight_itself(make):
    x, target = torch.randn(40, 6), torch.randn(40, 3)
    plain = make(6, 3)
    frozen = make(6, 3)
    frozen.load_state_dict(plain.state_dict())
    plain.bias.requires_grad_(False)
    layer = MultiscaleLinear(frozen, Branch(full=True))
    for module in (plain, layer):
        trained = [p for p in module.parameters() if p.requires_grad]
        assert len(trained) == 1
        optimizer = torch.optim.Adam(trained, lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            F.mse_loss(module(x), target).backward()
            optimizer.step()
    assert (plain.weight - frozen.weight).abs().max() > 0.1
    torch.testing.assert_close(layer.folded(), plain.weight.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.lora_B, torch.eye(3))


def test_what_cannot_be_inserted_is_refused_and_the_model_stays_trainable(family):
    model = family("bert")
    for branches in ({"bert.pooler.dens": SEVERAL}, {"bert.pooler": SEVERAL}, {"": SEVERAL}):
        with pytest.raises(ModelError, match="not a linear layer"):
            insert(model, {"bert.pooler.dense": SEVERAL, **branches})
    with pytest.raises(ConfigError):
        insert(model, {})
    assert all(p.requires_grad for p in model.parameters())
    assert not list(layers(model))
    insert(model, paper(model))
    with pytest.raises(ModelError, match="already"):
        insert(model, {"bert.encoder.layer.0.output.dense": SEVERAL})


def test_layers_of_one_model_share_their_groups_and_those_of_two_do_not(family):
    models = [family("bert"), family("bert")]
    groups = [insert(model, paper(model)) for model in models]
    for model, own in zip(models, groups, strict=True):
        assert all(layer.groups is own for _, layer in layers(model))
    assert groups[0] is not groups[1]


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2-causal"])
def test_one_pass_over_two_groups_of_rows_tells_their_gradients_apart(kind, family):
    model = family(kind)
    groups = insert(model, paper(model))
    stir(model)
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss(rows):
        picked = {k: v[rows] for k, v in INPUTS.items()}
        return model(**picked).logits.square().mean(dim=tuple(range(1, 3 if "causal" in kind else 2))).sum()

    wanted = [torch.autograd.grad(loss(rows), trained) for rows in (slice(0, 2), slice(2, 3))]
    groups.samples, groups.total = 2, 3
    groups.aside = {p: torch.zeros_like(p) for p in trained}
    got = torch.autograd.grad(loss(slice(0, 3)), trained)
    for p, g, batch, reference in zip(trained, got, *wanted, strict=True):
        torch.testing.assert_close(g, batch, rtol=1e-4, atol=1e-4 * batch.abs().max().item())
        torch.testing.assert_close(
            groups.aside[p], reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item()
        )
    for _, layer in layers(model):
        if layer.branch.full:
            assert torch.equal(layer.lora_B, torch.eye(len(layer.lora_B)))


def test_a_pass_that_rearranges_rows_is_refused():
    groups = RowGroups()
    layer = MultiscaleLinear(nn.Linear(4, 3), SEVERAL, groups)
    assert groups.cut(layer, torch.zeros(5, 4)) is None
    groups.samples, groups.total = 2, 5
    assert groups.cut(layer, torch.zeros(5, 4)).boundary == 2
    assert groups.cut(layer, torch.zeros(5, 7, 4)).boundary == 14
    assert groups.cut(layer, torch.zeros(5, 7, 2, 4)).boundary == 28
    for shape in [(35, 4), (7, 5, 4), (3, 4), (0, 4)]:
        with pytest.raises(ModelError, match="passes='two'"):
            layer(torch.zeros(shape))


def test_factors_stay_float32_over_a_bfloat16_base(family):
    model = family("llama-causal").bfloat16()
    insert(model, paper(model))
    stir(model, 0.1)
    out = model(**INPUTS).logits
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {(p.dtype, p.grad.dtype) for p in trained} == {(torch.float32, torch.float32)}
    assert all(p.grad.abs().sum() > 0 for p in trained)
    wanted = logits(model)
    fold(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(model), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2-causal"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, family):
    model = family(kind)
    insert(model, paper(model))
    stir(model).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(3)  # of dropout
        loss = model(**INPUTS).logits.square().mean()
        found.append(torch.autograd.grad(loss, list(trained.values())))
    for name, plain, again in zip(trained, *found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item(), msg=name)


class Quantized(nn.Linear):
    """Like bitsandbytes' layers: a kind of nn.Linear whose weight is packed and whose forward unpacks it."""

    def __init__(self, source):
        super().__init__(source.in_features, source.out_features)
        self.step = source.weight.detach().abs().max() / 127
        packed = (source.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = source.bias

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.step, self.bias)


class Scaled(nn.Linear):
    """Like fp8 layers: the weight is floating, but only half of what is multiplied by."""

    def forward(self, x):
        return F.linear(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize("make", [lambda: Quantized(nn.Linear(6, 3)), lambda: Scaled(6, 3)])
def test_a_base_with_a_forward_of_its_own_is_called_and_never_folded(make):
    layer = stir(nn.Sequential(MultiscaleLinear(make(), SEVERAL)))[0]
    x = torch.randn(4, 6, requires_grad=True)
    out = layer(x)
    torch.testing.assert_close(out, layer.base(x) + x @ layer.delta().T)
    (got,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad((layer.base(x) + x @ layer.delta().T).sum(), x)
    torch.testing.assert_close(got, wanted)
    out.sum().backward()
    assert layer.lora_A.grad.abs().sum() > 0
    with pytest.raises(ModelError, match="16 or 32 bits"):
        layer.folded()


def test_folding_is_all_or_nothing(family):
    model = family("bert")
    last = model.bert.encoder.layer[1].attention.self
    last.value = Quantized(last.value)
    insert(model, paper(model))
    wanted = logits(stir(model))
    with pytest.raises(ModelError, match="16 or 32 bits"):
        fold(model)
    with pytest.raises(ModelError, match="not a multi-scale layer"):
        fold(model, ["bert.pooler.dense", "bert.pooler"])
    assert torch.equal(logits(model), wanted)
    assert len(dict(layers(model))) == 6
    fold(model, [name for name, _ in layers(model) if not name.endswith("1.attention.self.value")])
    assert [name for name, _ in layers(model)] == ["bert.encoder.layer.1.attention.self.value"]
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)


def test_a_weight_shared_with_the_embeddings_is_not_folded_into(family):
    model = family("gpt2-causal")
    insert(model, {"lm_head": SEVERAL})
    wanted = logits(stir(model))
    with pytest.raises(ModelError, match="share one weight"):
        fold(model)
    assert torch.equal(logits(model), wanted)


def test_branches_beside_quantized_layers_go_out_as_an_adapter(family, tmp_path):
    model = family("bert")
    first = model.bert.encoder.layer[0].attention.self
    first.query = Quantized(first.query)
    insert(model, paper(model))
    wanted = logits(stir(model))
    save_adapter(model, tmp_path, logits=lambda: model(**INPUTS).logits)  # compares with peft's
    remove(model)
    load_multiscale(model, tmp_path)
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("kind", FAMILIES)
def test_folding_gives_the_logits_of_the_branches(kind, family):
    model, plain = family(kind), family(kind)
    names = [n for n, _ in plain.named_modules()]
    insert(model, paper(model))
    wanted = logits(stir(model, 0.1))
    fold(model)
    got = logits(model)
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()
    assert (wanted - logits(plain)).norm() > 1e-3 * wanted.norm()
    assert [n for n, _ in model.named_modules()] == names


@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_can_be_taken_out_and_put_back_without_a_trace(kind, family):
    model, plain = family(kind), family(kind)
    insert(model, paper(model))
    wanted = logits(stir(model))
    order = [(n, id(m)) for n, m in model.named_modules()]
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    taken = remove(model)
    assert [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in plain.named_modules()
    ]
    assert torch.equal(logits(model), logits(plain))
    restore(model, taken)
    assert [(n, id(m)) for n, m in model.named_modules()] == order
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert torch.equal(logits(model), wanted)
