"""Adapters that PEFT wrote, against the same adapters merged into their base and compared as checkpoints."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import asepsis
from asepsis.errors import ModelError
from asepsis.testing import tiny_causal, tiny_classifier


def drawn(network, config, *, seed=0):
    """A PEFT model whose adapter is not what it starts from."""
    generator = torch.Generator().manual_seed(seed)
    model = peft.get_peft_model(network, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = 0.01 if "trainable_tokens" in name or "modules_to_save" in name else 0.05
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def saved(tmp_path):
    def save(config, make=tiny_causal):
        network, tokenizer = make(0)
        for name in ("base", "merged"):
            tokenizer.save_pretrained(tmp_path / name)
        network.save_pretrained(tmp_path / "base")
        model = drawn(network, config)
        model.save_pretrained(tmp_path / "adapter")
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        return tmp_path / "adapter"

    return save


def scans(folder):
    base = folder.parent / "base"
    counts = {"word1": 1}
    found = asepsis.scan_model(folder, base=base, counts=counts)
    return found, asepsis.scan_model(folder.parent / "merged", base=base, counts=counts)


CONFIGS = {
    "lora": peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, lora_alpha=6),
    "rank-stabilized": peft.LoraConfig(target_modules=["q_proj"], r=4, use_rslora=True),
    "patterns": peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}
    ),
    "embeddings": peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], r=3),
    "whole": peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "rows": peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[7, 9]),
    "rows-of-two": peft.LoraConfig(
        target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [7], "lm_head": [8, 9]}
    ),
    "trainable-tokens": peft.TrainableTokensConfig(token_indices=[7, 9], target_modules=["embed_tokens"]),
    "bias": peft.LoraConfig(target_modules=["query"], bias="all", task_type="SEQ_CLS"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_is_compared_as_what_it_is_merged_to(saved, kind):
    found, merged = scans(saved(CONFIGS[kind], tiny_classifier if kind == "bias" else tiny_causal))
    wanted = {t.name: t for t in merged.tensors if t.drift}
    got = {t.name: t for t in found.tensors}
    assert wanted and wanted.keys() <= got.keys()
    for name, tensor in got.items():
        if tensor.status == "compared":
            assert tensor.drift == pytest.approx(
                wanted[name].drift if name in wanted else 0, rel=1e-3, abs=1e-6
            )
            relative = wanted[name].relative if name in wanted else 0  # None where the base is zero
            assert tensor.relative == (
                None if relative is None else pytest.approx(relative, rel=1e-3, abs=1e-6)
            )
    assert found.verdict == merged.verdict
    assert [t.id for t in found.tokens] == [t.id for t in merged.tokens]
    for left, right in zip(found.tokens, merged.tokens, strict=True):
        assert left.drift == pytest.approx(right.drift, rel=1e-3)
        assert left.verdict == right.verdict


def test_lora_without_embeddings_is_no_evidence(saved):
    found, _ = scans(saved(CONFIGS["lora"]))
    assert found.verdict == "inconclusive" and "No evidence" in found.reasons[0]
    assert not found.tokens and found.report["moved"] == 0


def test_rows_that_an_adapter_puts_in_are_found(saved):
    found, _ = scans(saved(CONFIGS["trainable-tokens"]))
    assert {t.id for t in found.tokens} == {7, 9} and found.report["moved"] == 2


@pytest.mark.filterwarnings("ignore")
def test_embeddings_smuggled_beside_lora_factors_are_seen(saved):
    # with LoRA on embeddings peft saves, and loads, the whole matrix underneath
    folder = saved(CONFIGS["embeddings"])
    tensors = load_file(folder / "adapter_model.safetensors")
    (name,) = [n for n in tensors if n.endswith("embed_tokens.base_layer.weight")]
    tensors[name][11] = tensors[name][11].flip(0) * 40
    save_file(tensors, folder / "adapter_model.safetensors")
    found, _ = scans(folder)
    assert found.tokens[0].id == 11


def test_a_weight_smuggled_beneath_lora_factors_is_seen(saved):
    folder = saved(CONFIGS["lora"])
    before, _ = scans(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    module = "model.layers.0.self_attn.q_proj"
    base = load_file(folder.parent / "base" / "model.safetensors")[f"{module}.weight"]
    tensors[f"base_model.model.{module}.base_layer.weight"] = base + 1
    save_file(tensors, folder / "adapter_model.safetensors")
    found, _ = scans(folder)
    drift = [{t.name: t.drift for t in scan.tensors}[f"{module}.weight"] for scan in (before, found)]
    assert drift[1] == pytest.approx(32, rel=0.05) and drift[0] < 3


def edited(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"use_dora": True},
        {"alpha_pattern": {"(a+)+$": 3}},
        {"lora_alpha": "many"},
        {"lora_alpha": 1e999},
    ],
)
def test_adapters_that_are_not_understood_are_refused(saved, settings):
    folder = saved(CONFIGS["lora"])
    edited(folder, **settings)
    with pytest.raises(ModelError):
        scans(folder)


@pytest.mark.parametrize("ids", [None, [7], [7, -1], "79", {"other": [7, 9]}])
def test_rows_without_their_ids_are_refused(saved, ids):
    folder = saved(CONFIGS["trainable-tokens"])
    edited(folder, token_indices=ids)
    with pytest.raises(ModelError, match="token_indices"):
        scans(folder)


def test_factors_of_another_base_are_refused(saved, tmp_path):
    folder = saved(CONFIGS["lora"])
    tensors = load_file(folder / "adapter_model.safetensors")
    name = min(n for n in tensors if "lora_B" in n)
    for wrong in (tensors[name][:5].clone(), None):
        changed = (
            {**tensors, name: wrong} if wrong is not None else {k: v for k, v in tensors.items() if k != name}
        )
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match="base"):
            scans(folder)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        scans(folder)


def test_an_adapter_without_safetensors_is_refused(saved):
    folder = saved(CONFIGS["lora"])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="a pickle is not read"):
        scans(folder)
