from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from asepsis.errors import ModelError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.models import load_for, load_tokenizer, load_trained


def saved(folder, maker=tiny_classifier, **options):
    model, tokenizer = maker(0, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_that_is_missing_or_holds_no_model_is_refused(tmp_path):
    for name in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match="cannot load"):
            load_for(tiny_rows(4, 0), name)
    with pytest.raises(ModelError, match="not a folder"):
        load_trained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no model in"):
        load_trained(tmp_path)


def test_a_pickle_checkpoint_is_refused_without_being_read(tmp_path):
    folder = saved(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_classifier(0)[0].state_dict(), folder / "pytorch_model.bin")
    for load in (lambda: load_for(tiny_rows(4, 0), folder), lambda: load_trained(folder)):
        with pytest.raises(ModelError, match="cannot load"):
            load()


def test_a_head_of_another_size_is_refused(tmp_path):
    folder = saved(tmp_path / "m", n_classes=3)
    with pytest.raises(ModelError):
        load_for(tiny_rows(4, 0, n_classes=2), folder)


def test_a_causal_body_gets_a_new_head_from_the_seed(tmp_path):
    folder = saved(tmp_path / "m", tiny_causal)
    heads = [load_for(tiny_rows(4, 0), folder, seed=s)[0].score.weight for s in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_loading_leaves_the_random_state_alone(tmp_path):
    folder = saved(tmp_path / "m", tiny_causal)
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    load_for(tiny_rows(4, 0), folder, seed=5)
    assert torch.equal(torch.rand(1), wanted)


def test_the_task_of_the_data_picks_the_kind_of_model(tmp_path):
    folder = saved(tmp_path / "m", tiny_causal)
    model, tokenizer = load_for(tiny_pairs(4, 0), folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == "right"


def test_a_tokenizer_without_padding_pads_with_its_end_token(tmp_path):
    _, tokenizer = tiny_causal(0)
    tokenizer.pad_token = None
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.pad_token == "[EOS]"
    assert found.padding_side == "right"


def drop_a_factor(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(key for key in tensors if "lora_B" in key)]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    "break_it",
    [
        drop_a_factor,
        lambda f: (f / "adapter_model.safetensors").write_bytes(
            (f / "adapter_model.safetensors").read_bytes()[:-50]
        ),
        lambda f: (f / "adapter_model.safetensors").unlink(),
        lambda f: (f / "adapter_config.json").write_text("{"),
    ],
)
def test_a_broken_adapter_is_refused_and_never_filled_up_with_chance(break_it, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, tokenizer = tiny_classifier(0)
    saved(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    settings = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    get_peft_model(base, settings).save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    assert load_trained(tmp_path / "out")
    break_it(tmp_path / "out")
    with pytest.raises(ModelError, match="adapter"):
        load_trained(tmp_path / "out")


def test_an_adapter_that_names_no_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS"}))
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not name its base"):
        load_trained(tmp_path)


def test_a_demo_name_with_a_bad_layer_count_is_refused():
    with pytest.raises(ModelError, match="number of layers"):
        load_tokenizer("demo:causal:many")
