"""Adapters go out as stock PEFT, and come back bit-exact as what they were."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asepsis.core import export
from asepsis.core.export import FACTORS, load_multiscale, mark_fresh, save_adapter
from asepsis.core.lora import Branch, insert, layers, remove
from asepsis.core.phases import Acted, Outcome
from asepsis.core.placement import attention, before_head, body, head_of, output_linear
from asepsis.errors import CheckpointError, ModelError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.checkpoint import save_run
from asepsis.training.models import load_for, load_trained

CLASSIFIERS = ["bert", "roberta", "distilbert", "llama", "gpt2"]
FAMILIES = [*CLASSIFIERS, "llama-causal", "gpt2-causal"]
ADAPTER = "adapter_model.safetensors"
INPUTS = {
    "input_ids": torch.arange(3, 27).view(3, 8),
    "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6]),
}
SEVERAL = Branch(rank=1, alpha=6.0, scales=(1.0, 4.0, 8.0))


def paper(model):
    """The paper's placement with a trained head, as the defense makes it."""
    chosen = dict.fromkeys(attention(model), Branch(rank=2, alpha=8.0))
    chosen[before_head(model)] = SEVERAL
    if head_of(model)[0] in ("classifier", "score"):
        chosen.setdefault(output_linear(model), Branch(full=True))
    return chosen


@torch.no_grad()
def stir(model, seed=7):
    """Give every factor the values of a training that went far."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in layers(model):
        for factor in (layer.lora_A, layer.lora_B):
            if factor.requires_grad:
                factor.copy_(0.3 * torch.randn(factor.shape, generator=generator))
    return model


def multiscale(model, branches=None):
    insert(model, paper(model) if branches is None else branches)
    return stir(model)


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


def save(model, folder):
    folder.mkdir(exist_ok=True)
    save_adapter(model, folder, logits=lambda: model(**INPUTS).logits)
    return folder


def through_peft(base, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()


def state_of(model):
    """Everything a save must leave alone: modules, tensors by identity and value, flags, hooks."""
    modules = {
        n: (id(m), m.training, len(m._forward_hooks), getattr(m, "gradient_checkpointing", None))
        for n, m in model.named_modules()
    }
    tensors = {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    return modules, tensors, set(vars(model))


def assert_same_state(model, before):
    modules, tensors, attributes = state_of(model)
    assert modules == before[0]
    assert attributes == before[2]
    assert list(tensors) == list(before[1])
    for name, (identity, flag, value) in tensors.items():
        assert (identity, flag) == before[1][name][:2], name
        assert torch.equal(value, before[1][name][2]), name


@pytest.mark.parametrize("kind", FAMILIES)
def test_peft_alone_gives_the_same_logits_on_a_fresh_base_with_another_head(kind, family, tmp_path):
    model = multiscale(family(kind))
    wanted, plain = logits(model), logits(family(kind))
    assert (wanted - plain).abs().max() > 1e-2
    base = family(kind, head_seed=5)
    got = logits(through_peft(base, save(model, tmp_path / "a")))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_adapter_is_an_ordinary_lora_with_the_scale_inside(kind, family, tmp_path):
    model = multiscale(family(kind))
    folder = save(model, tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["task_type"] == ("CAUSAL_LM" if "causal" in kind else "SEQ_CLS")
    assert config["fan_in_fan_out"] == kind.startswith("gpt2")
    assert not config["lora_bias"]
    assert not config["use_rslora"]
    heads = {
        "bert": ["classifier"],
        "roberta": ["classifier"],
        "distilbert": ["classifier", "pre_classifier"],
        "llama": ["score"],
        "gpt2": ["score"],
    }
    assert sorted(config["modules_to_save"] or []) == heads.get(kind, [])
    tensors = load_file(folder / ADAPTER)
    for name, layer in layers(model):
        key = f"base_model.model.{name}.lora_A.weight"
        if name in config["target_modules"]:
            assert torch.equal(tensors[key], layer.scale[:, None] * layer.lora_A)
        else:
            assert key not in tensors
            assert any(name == s or name.startswith(f"{s}.") for s in config["modules_to_save"])


def test_branches_of_several_ranks_get_their_own_rank_and_alpha(family, tmp_path):
    model = multiscale(family("bert"))
    config = json.loads((save(model, tmp_path / "a") / "adapter_config.json").read_text())
    assert config["r"] == 3  # the multi-scale one; the others are patterns
    assert set(config["rank_pattern"].values()) == {2}
    assert len(config["rank_pattern"]) == 4


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_linear_layer_of_the_body_can_go_out(kind, family, tmp_path):
    model = multiscale(family(kind), dict.fromkeys(body(family(kind)), SEVERAL))
    got = logits(through_peft(family(kind), save(model, tmp_path / "a")))
    torch.testing.assert_close(got, logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "llama", "gpt2"])
def test_a_model_whose_only_branches_are_in_the_head_goes_out(kind, family, tmp_path):
    model = family(kind)
    model = multiscale(model, {before_head(model): SEVERAL})
    got = logits(through_peft(family(kind, head_seed=5), save(model, tmp_path / "a")))
    torch.testing.assert_close(got, logits(model), rtol=1e-5, atol=1e-5)
    again = family(kind, head_seed=6)
    load_multiscale(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))


def test_an_untrained_frozen_head_travels_along(family, tmp_path):
    model = family("bert")
    model = multiscale(model, dict.fromkeys(attention(model), Branch(rank=2)))
    got = logits(through_peft(family("bert", head_seed=5), save(model, tmp_path / "a")))
    torch.testing.assert_close(got, logits(model), rtol=1e-5, atol=1e-5)


def test_what_is_trained_beside_the_branches_travels_along(family, tmp_path):
    model = multiscale(family("bert"))
    norm = model.bert.encoder.layer[0].output.LayerNorm.requires_grad_(True)
    with torch.no_grad():
        norm.weight.mul_(1.5)
    got = logits(through_peft(family("bert", head_seed=5), save(model, tmp_path / "a")))
    torch.testing.assert_close(got, logits(model), rtol=1e-5, atol=1e-5)
    assert norm.weight.requires_grad


def test_a_16_bit_base_goes_out_and_comes_back(family, tmp_path):
    model = multiscale(family("llama-causal").bfloat16())
    save(model, tmp_path / "a")
    again = family("llama-causal").bfloat16()
    load_multiscale(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", FAMILIES)
def test_saving_leaves_the_model_as_it_was(kind, family, tmp_path):
    model = multiscale(family(kind))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    before, wanted = state_of(model), logits(model)
    save(model, tmp_path / "a")
    assert_same_state(model, before)
    assert torch.equal(logits(model), wanted)
    save(model, tmp_path / "b")
    assert (tmp_path / "a" / ADAPTER).read_bytes() == (tmp_path / "b" / ADAPTER).read_bytes()


def train(model, steps):
    labels = torch.tensor([0, 1, 2])
    if hasattr(model, "lm_head"):
        labels = INPUTS["input_ids"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**INPUTS, labels=labels).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", FAMILIES)
def test_unfolded_factors_come_back_bit_exact_and_train_on_in_the_same_way(kind, family, tmp_path):
    model = multiscale(family(kind))
    folder = save(model, tmp_path / "a")
    again = family(kind, head_seed=9)
    load_multiscale(again, folder)
    for _ in range(2):
        assert torch.equal(logits(again), logits(model))
        mine, its = dict(model.named_parameters()), dict(again.named_parameters())
        assert list(mine) == list(its)
        for name, parameter in mine.items():
            assert parameter.requires_grad == its[name].requires_grad, name
            assert torch.equal(parameter, its[name]), name
        train(model, 3)
        train(again, 3)


def test_what_came_back_can_go_out_again_whole(family, tmp_path):
    model = family("bert")
    mark_fresh(model, ["bert.pooler.dense.weight", "bert.pooler.dense.bias"])
    folder = save(multiscale(model), tmp_path / "a")
    again = family("bert", head_seed=9)
    torch.nn.init.normal_(again.bert.pooler.dense.weight)
    load_multiscale(again, folder)
    second = save(again, tmp_path / "b")
    assert (second / ADAPTER).read_bytes() == (folder / ADAPTER).read_bytes()


def rewritten(folder, *, tensors=None, metadata=None, without=()):
    path = folder / FACTORS
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    content = {k: v for k, v in load_file(path).items() if k not in without}
    save_file({**content, **(tensors or {})}, path, metadata={**header, **(metadata or {})})


POOLER = "bert.pooler.dense"
BROKEN = {
    "wrong scales": lambda f: rewritten(f, tensors={f"{POOLER}.scale": torch.tensor([6.0, 24.0, 54.0])}),
    "scales of another branch": lambda f: rewritten(f, tensors={f"{POOLER}.scale": torch.ones(2)}),
    "a factor that would broadcast": lambda f: rewritten(f, tensors={f"{POOLER}.lora_A": torch.ones(1, 32)}),
    "a factor of another width": lambda f: rewritten(f, tensors={f"{POOLER}.lora_A": torch.ones(3, 31)}),
    "no factor": lambda f: rewritten(f, without=[f"{POOLER}.lora_B"]),
    "no scale": lambda f: rewritten(f, without=[f"{POOLER}.scale"]),
    "half a head": lambda f: rewritten(f, without=["base.classifier.bias"]),
    "a head of another size": lambda f: rewritten(f, tensors={"base.classifier.weight": torch.ones(4, 32)}),
    "another format": lambda f: rewritten(f, metadata={"format": "2"}),
    "no json": lambda f: rewritten(f, metadata={"branches": "{"}),
    "a branch with unknown fields": lambda f: rewritten(f, metadata={"branches": '{"x": {"y": 1}}'}),
    "truncated": lambda f: (f / FACTORS).write_bytes((f / FACTORS).read_bytes()[:-100]),
    "no header": lambda f: (f / FACTORS).write_bytes(b"\0" * 4),
    "missing": lambda f: (f / FACTORS).unlink(),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_and_the_model_left_alone(what, family, tmp_path):
    folder = save(multiscale(family("bert")), tmp_path / "a")
    BROKEN[what](folder)
    base = family("bert", head_seed=5)
    before, wanted = state_of(base), logits(base)
    with pytest.raises(CheckpointError):
        load_multiscale(base, folder)
    assert_same_state(base, before)
    assert torch.equal(logits(base), wanted)


def test_factors_of_another_architecture_are_refused(family, tmp_path):
    folder = save(multiscale(family("bert")), tmp_path / "a")
    with pytest.raises(CheckpointError):
        load_multiscale(family("roberta"), folder)


def test_a_model_that_has_branches_takes_no_second_ones(family, tmp_path):
    model = multiscale(family("bert"))
    folder = save(model, tmp_path / "a")
    with pytest.raises((CheckpointError, ModelError)):
        load_multiscale(model, folder)


def spoil(monkeypatch, change):
    honest = export._write

    def write(model, folder, *rest):
        honest(model, folder, *rest)
        tensors = load_file(folder / ADAPTER)
        change(tensors)
        save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})

    monkeypatch.setattr(export, "_write", write)


def one_factor(tensors):
    key = next(k for k in tensors if "pooler" in k and "lora_A" in k)
    tensors[key] = tensors[key] * torch.tensor([1.0, 4.0, 8.0])[:, None]  # the scale a second time


def one_head(tensors):
    tensors["base_model.model.classifier.weight"] += 0.1


def one_nan(tensors):
    next(v for k, v in tensors.items() if "lora_B" in k)[0, 0] = float("nan")


@pytest.mark.parametrize("change", [one_factor, one_head, one_nan, dict.popitem])
def test_a_wrong_adapter_is_found_when_it_is_saved(change, family, tmp_path, monkeypatch):
    model = multiscale(family("bert"))
    before = state_of(model)
    spoil(monkeypatch, change)
    with pytest.raises(CheckpointError):
        save(model, tmp_path / "a")
    assert_same_state(model, before)


def test_a_failure_inside_peft_leaves_the_model_as_it_was(family, tmp_path, monkeypatch):
    import peft.peft_model

    def fail(*args, **options):
        raise RuntimeError("no space")

    model = multiscale(family("roberta"))
    before = state_of(model)
    monkeypatch.setattr(peft.peft_model.PeftModel, "load_adapter", fail)
    with pytest.raises(CheckpointError, match="no space"):
        save(model, tmp_path / "a")
    assert_same_state(model, before)


def run(folder, model, tokenizer, data, base):
    outcome = Outcome(
        acted=Acted(samples=len(data)), flagged=np.empty(0, np.int64), isolated=np.empty(0, np.int64)
    )
    manifest = {"format": 1, "model": str(base), "n_classes": data.n_classes}
    return save_run(folder, model, tokenizer, manifest, outcome, data)


def predicted(model, tokenizer, data):
    rows = tokenizer(list(data.texts), return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.eval()(**rows).logits


def trained_run(tmp_path, maker, data, *, without=()):
    base, tokenizer = maker(3)
    base.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith(without)}, path, {"format": "pt"})
    tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = load_for(data, tmp_path / "base", seed=1)
    model = multiscale(model).train()
    return model, tokenizer, run(tmp_path / "out", model, tokenizer, data, tmp_path / "base")


@pytest.mark.parametrize(
    ("maker", "data", "without"),
    [
        (tiny_classifier, tiny_rows(6, 0), ("classifier.",)),
        (tiny_classifier, tiny_rows(6, 0), ("classifier.", "bert.pooler.")),
        (tiny_classifier, tiny_rows(6, 0), ("classifier.", "bert.encoder.layer.1.", "bert.pooler.")),
        (tiny_causal, tiny_pairs(6, 0), ("nothing",)),
        (tiny_causal, tiny_rows(6, 0, n_classes=3), ("lm_head.",)),
    ],
)
def test_a_saved_run_is_loaded_with_the_same_predictions(maker, data, without, tmp_path):
    torch.manual_seed(0)
    model, tokenizer, folder = trained_run(tmp_path, maker, data, without=without)
    assert model.training
    assert sum(p.requires_grad for p in model.parameters()) > 4
    wanted = predicted(model, tokenizer, data)
    torch.manual_seed(1)
    again, its = load_trained(folder)
    torch.testing.assert_close(predicted(again, its, data), wanted, rtol=1e-5, atol=1e-5)
    assert not (folder / "model.safetensors").exists()


def test_a_run_whose_adapter_is_wrong_leaves_no_folder(tmp_path, monkeypatch):
    spoil(monkeypatch, one_factor)
    with pytest.raises(CheckpointError, match="other logits"):
        trained_run(tmp_path, tiny_classifier, tiny_rows(6, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_saving_plain_layers_again_after_removing_them_needs_no_adapter(tmp_path):
    model, tokenizer, _ = trained_run(tmp_path, tiny_classifier, tiny_rows(6, 0))
    remove(model)
    folder = run(tmp_path / "plain", model, tokenizer, tiny_rows(6, 0), tmp_path / "base")
    assert (folder / "model.safetensors").exists()
    assert not (folder / "adapter_config.json").exists()
