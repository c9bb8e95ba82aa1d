"""Weights spread over two processes by FSDP2 against one process. Run as a script, this file is the worker."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from together import assert_same, defend, end, in_two_processes, save
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainingArguments

import asepsis
from asepsis.errors import BackendError
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training.shards import check_sharded, is_sharded, local

#: transformers has plans for causal models; of a small encoder one has to say what is spread on its own
PLAN = {"bert.embeddings": "free_full_weight", "bert.encoder.layer.*": "free_full_weight"}
NAMES = ("abl", "musclelora", "musclelora in two passes")


def train(name, folder, *, accumulation, defense=None, **sharding):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", **sharding)
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation}
    return defend(name, model, tiny_classifier(1)[1], folder, defense=defense, use_cpu=True, **sizes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where two processes have been through every defense."""
    folder = tmp_path_factory.mktemp("sharded")
    model, tokenizer = tiny_classifier(1, dropout=0.0)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    in_two_processes(__file__, folder, timeout=900)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", NAMES)
def test_spread_over_two_processes_it_ends_where_one_does_with_twice_the_batch(name, place):
    start = load_file(place / "model" / "model.safetensors")
    for told in assert_same(train(name, place, accumulation=2), place, name, start):
        # of the embeddings each process held no more than its half
        assert int(told["held"]) <= 0.6 * start["bert.embeddings.word_embeddings.weight"].numel()


class Part(nn.Parameter):
    """What a spread tensor shows of itself."""

    def to_local(self):
        return self.data[:1]


def spread(**config):
    model = nn.Linear(2, 2)
    model.weight = Part(model.weight.data)
    if config:
        model.config = SimpleNamespace(distributed_config=SimpleNamespace(**config))
        model.is_distributed_loading_by_transformers = True
    return model


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "not by transformers: load it with"),
        ({"fsdp_size": 2, "tp_size": 2}, r"tp_size=2 is not supported"),
        ({"fsdp_size": 2, "dp_replicate_size": 2}, r"dp_replicate_size=2 is not supported"),
        ({"fsdp_size": 2, "fsdp_mixed_precision": True}, r"fsdp_mixed_precision=True is not supported"),
        ({"fsdp_size": 2, "fsdp_cpu_offload": True}, r"fsdp_cpu_offload=True is not supported"),
        ({"fsdp_size": 4}, r"fsdp_size=4 with 2 processes"),
    ],
)
def test_weights_spread_in_another_way_are_refused_with_the_way_out(config, message):
    with pytest.raises(BackendError, match=message):
        check_sharded(spread(**config), 2)


def test_weights_spread_over_all_processes_are_taken():
    check_sharded(spread(fsdp_size=2, tp_size=1, fsdp_mixed_precision=False), 2)
    assert is_sharded(spread()) and not is_sharded(nn.Linear(2, 2))


def test_the_part_of_a_tensor_shares_its_memory():
    weight = spread().weight
    local(weight.data).zero_()
    assert not weight.data.any()
    part = local(spread().weight)
    assert part.shape == (1, 2)


def test_the_plain_loop_refuses_spread_weights():
    model, tokenizer = tiny_classifier(1)
    model.classifier.weight = Part(model.classifier.weight.data)
    with pytest.raises(BackendError, match="pass args=TrainingArguments"):
        asepsis.defend(model, tiny_rows(8, 0), defense=None, processing_class=tokenizer)


def test_the_trainers_own_fsdp_is_refused_and_says_how_to_load_instead(tmp_path):
    model, tokenizer = tiny_classifier(1)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    args.fsdp = True
    with pytest.raises(BackendError, match="distributed_config="):
        asepsis.defend(model, tiny_rows(8, 0), defense=None, processing_class=tokenizer, args=args)


def work(folder):
    from transformers.distributed import DistributedConfig

    for name in NAMES:
        sharding = {"distributed_config": DistributedConfig(fsdp_size=2, fsdp_plan=PLAN)}
        run = train(name, folder, accumulation=1, **sharding)
        held = local(run.model.get_input_embeddings().weight).numel()
        save(run, folder, name, held=torch.tensor(held))
    config = asepsis.BtuConfig(k=2, tuning_epochs=0)
    try:
        train("btu", folder, accumulation=1, defense=(config, {}), **sharding)
    except BackendError as error:
        assert "use abl or musclelora" in str(error)
    else:
        raise AssertionError("btu looks at whole weights, and was not refused")


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
    end()
