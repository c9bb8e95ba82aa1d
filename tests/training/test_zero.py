"""DeepSpeed's ZeRO-2 in two processes against one process without it. Run as a script, this file is the worker."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from together import DEFENSES, assert_same, defend, end, in_two_processes, save
from transformers import Trainer, TrainingArguments

import asepsis
from asepsis.errors import BackendError
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training.processes import check_resumable
from asepsis.training.zero import check_zero

NUMBERS = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
CONFIG = {
    **dict.fromkeys((*NUMBERS, "gradient_clipping"), "auto"),
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
}


def train(name, folder, *, accumulation, **launch):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    return defend(name, *tiny_classifier(1, dropout=0.0), folder, max_grad_norm=0.5, **sizes, **launch)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where two processes have been through every defense."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero")
    # DeepSpeed compiles a way for processes to talk when it first comes to a CPU: by ninja, which pip puts beside Python
    own = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # as `accelerate launch --use_deepspeed` says it; by deepspeed= accelerate would not count processes without a GPU
    (folder / "zero.json").write_text(json.dumps(CONFIG))
    own |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "zero.json")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    in_two_processes(__file__, folder, timeout=1200, **own, PATH=path)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("name", DEFENSES)
def test_under_zero_2_in_two_processes_it_ends_where_one_does_with_twice_the_batch(name, place):
    start = dict(tiny_classifier(1, dropout=0.0)[0].named_parameters())
    assert_same(train(name, place, accumulation=4, use_cpu=True), place, name, start)


def asked(config, **other):
    """What training arguments show of a launch under DeepSpeed, before it reaches DeepSpeed."""
    given = {
        "deepspeed": config,
        "deepspeed_plugin": SimpleNamespace(deepspeed_config=config),
        "distributed_state": SimpleNamespace(distributed_type=DistributedType.DEEPSPEED),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "world_size": 1,
        "max_grad_norm": 1.0,
        "bf16": False,
        "fp16": False,
        "mixed_precision": "no",
    }
    return SimpleNamespace(**given | other)


def settled(**changes):
    return {**CONFIG, "zero_optimization": {"stage": 2}, **changes}


@pytest.mark.parametrize(
    ("config", "other", "message"),
    [
        (
            settled(zero_optimization={"stage": 3}),
            {},
            "stage 3 is not supported: supported are.*stage 2.*DDP.*FSDP2",
        ),
        (settled(zero_optimization={"stage": 1}), {}, "stage 1 is not supported"),
        (settled(zero_optimization={}), {}, "stage None is not supported"),
        (
            settled(zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}}),
            {},
            "offload_optimizer is not supported",
        ),
        (settled(zero_optimization={"stage": 2, "zenflow": {}}), {}, r"zero_optimization\.zenflow is not"),
        (settled(bf16={"enabled": True}), {}, "in bf16 .* float32"),
        (settled(), {"fp16": True}, "in fp16"),
        (settled(), {"mixed_precision": "fp8"}, "in fp8"),
        (settled(optimizer={"type": "AdamW"}), {}, "own optimizer .* phases"),
        (settled(scheduler={"type": "WarmupLR"}), {}, "own scheduler .* phases"),
        (settled(compression_training={}), {}, "with compression_training is not supported"),
        (
            settled(gradient_clipping=0.3),
            {},
            "gradient_clipping is 0.3 and TrainingArguments say 1.0.*'auto'",
        ),
        (settled(gradient_clipping=None), {}, "gradient_clipping is None"),
        (settled(gradient_accumulation_steps=1), {}, "gradient_accumulation_steps is 1 and"),
        (settled(train_batch_size=4), {}, "train_batch_size is 4 and TrainingArguments say 8"),
        (
            settled(),
            {"distributed_state": SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)},
            "start with torchrun .* without use_cpu=True",
        ),
        (settled(), {"world_size": 2}, "counts 2 process.* torch has 1.*ddp_backend='gloo'"),
    ],
)
def test_what_is_not_supported_of_deepspeed_is_refused_and_says_what_is(config, other, message):
    with pytest.raises(BackendError, match=message):
        check_zero(asked(config, **other), torch.nn.Linear(2, 2))


def test_zero_2_is_taken_and_widths_are_filled_in():
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(hidden_size=32)
    config = settled(zero_optimization={"stage": 2, "reduce_bucket_size": "auto"}, train_batch_size=8)
    check_zero(asked(config), model)
    assert config["zero_optimization"]["reduce_bucket_size"] == 1024
    without = settled(gradient_clipping=None, train_batch_size=None)
    check_zero(asked(without, max_grad_norm=0.0), model)


def test_a_defense_is_refused_before_it_scores_a_row(tmp_path):
    model, tokenizer = tiny_classifier(1)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    args.deepspeed = CONFIG  # without DeepSpeed installed transformers raises here by itself
    seen = []
    with pytest.raises(BackendError, match="start with torchrun"):
        asepsis.defend(
            model,
            tiny_rows(8, 0),
            defense="abl",
            processing_class=tokenizer,
            args=args,
            progress=lambda *step: seen.append(step),
        )
    assert not seen


def test_checkpoints_under_deepspeed_are_refused():
    with pytest.raises(BackendError, match="checkpoints of a training under DeepSpeed"):
        check_resumable(torch.nn.Linear(2, 2), asked(settled()))


def test_purify_refuses_deepspeed_before_it_reads_a_model():
    with pytest.raises(BackendError, match="purify does not tune under DeepSpeed"):
        asepsis.purify("nowhere", base="nowhere", args=asked(settled()))


def work(folder):
    for name in DEFENSES:
        run = train(name, folder, accumulation=2, ddp_backend="gloo")
        storages = [p.untyped_storage().data_ptr() for p in run.model.parameters()]
        assert len(set(storages)) == len(storages), "weights are still in one buffer"
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in run.model.modules())
        assert not any(hasattr(p, "_hp_mapping") for p in run.model.parameters())
        save(run, folder, name)
    rows, (model, tokenizer) = tiny_rows(8, 0), tiny_classifier(1)
    args = TrainingArguments(str(folder / "own"), report_to=[], save_strategy="no", ddp_backend="gloo")
    pairs = zip(rows.texts, rows.labels, strict=True)
    tokenized = [{**tokenizer(text), "labels": int(label)} for text, label in pairs]
    own = asepsis.defended(Trainer, "abl")(
        model, args=args, train_dataset=tokenized, processing_class=tokenizer
    )
    try:
        own.train()
    except BackendError as error:
        assert "of your own" in str(error)
    else:
        raise AssertionError("a trainer of one's own was not refused")


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
    end()
