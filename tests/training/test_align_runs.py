"""Whole trainings under alignment: schedule, precision, what is refused, and what is left behind."""

from __future__ import annotations

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from asepsis.core.alignment import Alignment
from asepsis.core.lora import insert, layers
from asepsis.core.phases import Acted, Outcome, Train
from asepsis.data import Data
from asepsis.defenses._musclelora_config import MuscleloraConfig
from asepsis.defenses.musclelora import Musclelora
from asepsis.errors import BackendError, ConfigError, DataError, DefenseInert, ModelError
from asepsis.testing import TRIGGER, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import align as module
from asepsis.training.align import Aligner
from asepsis.training.loop import LoopDriver
from asepsis.training.settings import Settings

SETTINGS = Settings(
    epochs=1, batch_size=6, learning_rate=2e-3, seed=5, device="cpu", precision="fp32", max_length=32
)


def adapted(dropout=0.0, **options):
    """A tiny model with branches none of whose factors is zero, so that every gradient says something."""
    model, tokenizer = tiny_classifier(3, dropout=dropout)
    config = MuscleloraConfig(**{"scales": (1, 2, 3), "rank": 2, **options})
    torch.manual_seed(1)
    branches = Musclelora(config).branches(model)
    if branches:
        insert(model, branches)
    with torch.no_grad():
        for _, layer in layers(model):
            if not layer.branch.full:
                layer.lora_B.normal_(std=0.05)
    return model.train(), tokenizer


def numbers(report):
    return {name: value for name, value in report.items() if not isinstance(value, str)}


def train(data, reference, *, make=adapted, request=None, align=None, **changes):
    model, tokenizer = make()
    driver = LoopDriver(model, tokenizer, data, dataclasses.replace(SETTINGS, **changes))
    alignment = Alignment(
        **{"reference": reference, "batch_size": 4, "min_reference_loss": 0.0, **(align or {})}
    )
    request = Train(name="t", alignment=alignment, **(request or {"steps": 5}))
    found = []

    def script():
        found.append((yield request))
        return Outcome(acted=Acted(steps=1))

    driver.run(script())
    return model, found[0]


def test_the_loop_divides_the_reference_among_its_micro_batches():
    reports = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        _, trained = train(
            tiny_rows(8, 0),
            tiny_rows(8, 1),
            request={"steps": 1},
            batch_size=batch_size,
            accumulation=accumulation,
        )
        reports.append({**numbers(trained.alignment), "loss": trained.loss})
    for report in reports[1:]:
        assert report == pytest.approx(reports[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_epoch_of_every_step_is_the_datas(monkeypatch, accumulation):
    weights, real = [], module.gradient_alignment

    def record(*args, **options):
        weights.append(options["raw_weight_below"])
        return real(*args, **options)

    monkeypatch.setattr(module, "gradient_alignment", record)
    data = tiny_rows(18, 0)  # nine batches of two an epoch
    train(
        data,
        tiny_rows(4, 1),
        request={"epochs": 10},
        align={"min_reference_loss": 99.0},
        batch_size=2,
        accumulation=accumulation,
    )
    wanted = [1.0] + [0.1 * (epoch - 1) / 9 for epoch in range(1, 10)]
    assert weights == pytest.approx(np.repeat(wanted, 9 // accumulation).tolist())


def sure_of_class_0():
    model, tokenizer = adapted()
    with torch.no_grad():
        model.classifier.base.bias.copy_(torch.tensor([1000.0, 0.0]))
    return model, tokenizer


@pytest.mark.parametrize("passes", ["one", "two"])
def test_a_reference_without_gradient_is_no_quiet_pass(passes):
    reference = tiny_rows(8, 1).select(np.arange(0, 8, 2))  # class 0: the model is sure, to the last bit
    with pytest.raises(DefenseInert, match="no tensor of any step could be aligned"):
        train(tiny_rows(12, 0), reference, make=sure_of_class_0, align={"passes": passes})


def broken_word():
    model, tokenizer = adapted()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(TRIGGER)] = math.nan
    return model, tokenizer


@pytest.mark.parametrize("passes", ["one", "two"])
def test_reference_rows_that_overflow_are_told_and_leave_the_weights_finite(passes, caplog):
    reference = tiny_rows(8, 1)
    reference = dataclasses.replace(reference, texts=[f"{TRIGGER} word1", *reference.texts[1:]])
    with caplog.at_level(logging.WARNING, "asepsis"):
        model, trained = train(tiny_rows(12, 0), reference, make=broken_word, align={"passes": passes})
    assert "no finite gradient and stood still" in caplog.text
    assert all(p.isfinite().all() for p in model.parameters() if p.requires_grad)
    n = trained.alignment["tensors"]
    assert 0 < trained.alignment["non_finite_tensors"] < n
    json.dumps(trained.alignment, allow_nan=False)
    assert trained.alignment["reference_loss"] is None
    with pytest.raises(DefenseInert, match="no tensor of any step"):
        train(tiny_rows(12, 0), reference.select(np.array([0])), make=broken_word, align={"passes": passes})


def test_a_parameter_outside_the_graph_stands_still():
    def make():
        model, tokenizer = adapted()
        model.register_parameter("spare", nn.Parameter(torch.ones(3)))
        return model, tokenizer

    model, trained = train(tiny_rows(12, 0), tiny_rows(8, 1), make=make)
    assert trained.alignment["passes"] == "two"
    assert trained.alignment["kept_raw_tensors"] == 1
    assert torch.equal(model.spare, torch.ones(3))


def whole():
    return adapted(adapters="none")


def test_full_fine_tuning_is_aligned_in_two_passes_only():
    model, trained = train(tiny_rows(12, 0), tiny_rows(8, 1), make=whole)
    assert trained.alignment["passes"] == "two"
    assert trained.alignment["tensors"] == len(list(model.parameters()))
    with pytest.raises(ConfigError, match="stand outside them"):
        train(tiny_rows(12, 0), tiny_rows(8, 1), make=whole, align={"passes": "one"})


def test_half_precision_weights_are_refused_but_a_half_precision_base_is_not():
    def half(make):
        model, tokenizer = make()
        for p in model.parameters():
            if make is whole or not p.requires_grad:
                p.data = p.data.to(torch.bfloat16)
        return model, tokenizer

    with pytest.raises(BackendError, match=r"float32 trained parameters, got torch\.bfloat16"):
        train(tiny_rows(12, 0), tiny_rows(8, 1), make=lambda: half(whole))
    _, trained = train(tiny_rows(12, 0), tiny_rows(8, 1), make=lambda: half(adapted), precision="bf16")
    assert trained.alignment["passes"] == "one"


@pytest.mark.parametrize("passes", ["one", "two"])
def test_bf16_autocast_stays_close_to_fp32(passes):
    runs = [
        train(tiny_rows(24, 0), tiny_rows(8, 1), precision=p, align={"passes": passes}, learning_rate=1e-3)[0]
        for p in ("fp32", "bf16")
    ]
    start = adapted()[0].state_dict()
    full, half = (m.state_dict() for m in runs)
    moved = sum(float((full[k] - start[k]).square().sum()) for k in full)
    apart = sum(float((full[k] - half[k]).square().sum()) for k in full)
    assert 0 < apart < 0.05 * moved


def test_reference_rows_that_do_not_fit_the_run_are_refused_before_a_step():
    other = tiny_pairs(8, 1)
    with pytest.raises(DataError, match="clean reference is for causal"):
        train(tiny_rows(12, 0), other)
    three = Data(task="classification", texts=["a", "b"], labels=np.array([0, 2]), n_classes=3)
    with pytest.raises(DataError, match="clean reference has label 2, the data has 2 classes"):
        train(tiny_rows(12, 0), three)


def forward(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(["word1 word2"], return_tensors="pt")).logits


@pytest.mark.parametrize("failing", [False, True])
def test_after_training_the_model_is_an_ordinary_one(failing, monkeypatch):
    kept = []

    def make():
        kept.append(adapted())
        return kept[0]

    if failing:  # as running out of memory would

        def stop(self, index):
            raise MemoryError

        monkeypatch.setattr(Aligner, "finish", stop)
        with pytest.raises(MemoryError):
            train(tiny_rows(12, 0), tiny_rows(8, 1), make=make)
    else:
        report = train(tiny_rows(12, 0), tiny_rows(8, 1), make=make)[1].alignment
        assert json.loads(json.dumps(report, allow_nan=False)) == report
    model, tokenizer = kept[0]
    assert all(p.grad is None for p in model.parameters())
    assert all(layer.groups.samples is None and not layer.groups.aside for _, layer in layers(model))
    assert forward(model, tokenizer).isfinite().all()


def test_a_model_that_rearranges_rows_is_sent_to_two_passes():
    class Halved(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.cat([self.inner(part) for part in x.split(1)])

    def make():
        model, tokenizer = adapted()
        model.bert.pooler.dense = Halved(model.bert.pooler.dense)
        return model, tokenizer

    with pytest.raises(ModelError, match="passes='two'"):
        train(tiny_rows(12, 0), tiny_rows(8, 1), make=make)
    train(tiny_rows(12, 0), tiny_rows(8, 1), make=make, align={"passes": "two"})


def test_the_same_seed_walks_the_same_path_and_another_does_not():
    weights = []
    for seed in (1, 1, 2):
        model, _ = train(tiny_rows(24, 0), tiny_rows(8, 1), make=lambda: adapted(dropout=0.1), seed=seed)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_order_of_the_reference_rows_follows_the_seed(monkeypatch):
    drawn, real = [], Aligner.begin

    def record(self, step):
        real(self, step)
        drawn.append(self.piece(0).sample_id.tolist())

    monkeypatch.setattr(Aligner, "begin", record)
    for seed in (1, 1, 2):
        train(tiny_rows(24, 0), tiny_rows(16, 1), seed=seed)
    first, again, other = drawn[:5], drawn[5:10], drawn[10:]
    assert first == again and first != other
