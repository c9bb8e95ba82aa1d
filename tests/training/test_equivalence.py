"""The Trainer driver against the plain loop: same requests, same weights, dropout on."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from asepsis.core.alignment import Alignment
from asepsis.core.lora import insert
from asepsis.core.losses import BoundedAscent, Flooding, LossRule
from asepsis.core.phases import Acted, Encode, Outcome, Train
from asepsis.defenses._musclelora_config import MuscleloraConfig
from asepsis.defenses.musclelora import Musclelora
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.loop import LoopDriver
from asepsis.training.settings import Settings
from asepsis.training.trainer import TrainerDriver

SETTINGS = Settings(
    epochs=1, batch_size=6, learning_rate=2e-3, seed=5, device="cpu", precision="fp32", max_length=32
)


def arguments(folder, settings=SETTINGS):
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        per_device_eval_batch_size=settings.eval_batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=0,
        seed=settings.seed,
    )


def answers_of(driver, requests):
    answers = []

    def script():
        for request in requests:
            answers.append((yield request))
        return Outcome(acted=Acted(steps=1))

    driver.run(script())
    return answers


def both(requests, folder, *, settings=SETTINGS, make=tiny_classifier, data=None):
    data = tiny_rows(40, 0) if data is None else data
    runs = []
    for kind in ("loop", "trainer"):
        model, tokenizer = make(3)
        if kind == "loop":
            driver = LoopDriver(model, tokenizer, data, settings)
        else:
            args = arguments(folder, settings)
            driver = TrainerDriver(model, tokenizer, data, args, max_length=settings.max_length)
        runs.append((answers_of(driver, requests), {k: v.clone() for k, v in model.state_dict().items()}))
    return runs


def assert_same(runs):
    (first, weights), (second, others) = runs
    for a, b in zip(first, second, strict=True):
        assert (a.steps, a.stopped_early) == (b.steps, b.stopped_early)
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.isolated_loss == (
            None if b.isolated_loss is None else pytest.approx(b.isolated_loss, rel=1e-6)
        )
    for name, value in weights.items():
        scale = max(float(value.float().norm()), 1e-3)
        distance = float((value.float() - others[name].float()).norm())
        assert distance <= 1e-6 * scale, f"{name} differs by {distance / scale:.1e}"


def changed(runs, make=tiny_classifier):
    start = make(3)[0].state_dict()
    return any(not torch.equal(start[k], v) for k, v in runs[0][1].items())


ISOLATED = tiny_rows(40, 0).sample_ids[:10]
REST = tiny_rows(40, 0).sample_ids[10:]

REQUESTS = {
    "plain": Train(name="t", loss=LossRule()),
    "flooding that descends": Train(name="t", loss=Flooding(0.05), steps=8),
    "flooding that ascends": Train(name="t", loss=Flooding(2.0), steps=8),
    "flooding around the level": Train(name="t", loss=Flooding(math.log(2)), steps=12),
    "ascent": Train(name="t", rows=REST, isolated=ISOLATED, loss=BoundedAscent(2.0), steps=8),
    "constant rate": Train(name="t", steps=7, decay_steps=0, learning_rate_scale=0.5),
    "own decay": Train(name="t", steps=7, decay_steps=20),
    "word embeddings alone": Train(name="t", steps=7, trainable="embeddings", weight_decay=0.0),
    "pooled": Train(
        name="t", steps=7, network="pooled", trainable="embeddings", drop_tokens=np.arange(20, 50)
    ),
    "pooled over padding": Train(name="t", steps=7, network="pooled over padding", weight_decay=0.0),
    "other rows": Train(name="t", epochs=2, data=tiny_rows(15, 4)),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", REQUESTS)
def test_both_drivers_walk_the_same_path(name, accumulation, tmp_path):
    settings = dataclasses.replace(SETTINGS, accumulation=accumulation)
    runs = both([REQUESTS[name]], tmp_path, settings=settings)
    assert changed(runs)
    assert_same(runs)


def test_both_drivers_stop_at_the_same_step(tmp_path):
    request = Train(
        name="t",
        rows=REST,
        isolated=ISOLATED,
        loss=BoundedAscent(2.0),
        steps=60,
        decay_steps=0,
        stop_above=0.9,
    )
    settings = dataclasses.replace(SETTINGS, learning_rate=1e-2)
    runs = both([request], tmp_path, settings=settings)
    assert runs[0][0][0].stopped_early
    assert 5 <= runs[0][0][0].steps < 60
    assert_same(runs)


def test_a_second_request_starts_with_a_fresh_optimizer_in_both(tmp_path):
    requests = [REQUESTS["plain"], REQUESTS["constant rate"]]
    assert_same(both(requests, tmp_path))


def test_both_drivers_agree_on_causal_models_with_responses_of_many_lengths(tmp_path):
    settings = dataclasses.replace(SETTINGS, accumulation=2)
    runs = both(
        [Train(name="t", steps=6)], tmp_path, settings=settings, make=tiny_causal, data=tiny_pairs(40, 0)
    )
    assert changed(runs, tiny_causal)
    assert_same(runs)


@pytest.mark.parametrize("network", ["full", "pooled"])
def test_only_rows_of_tokens_that_occur_move_whatever_the_users_decay(network, tmp_path):
    words = "bert.embeddings.word_embeddings.weight"
    data, start = tiny_rows(40, 0), tiny_classifier(3)[0].state_dict()
    dropped = np.arange(10, 30)
    expose = Train(name="t", network=network, trainable="embeddings", weight_decay=0.0, drop_tokens=dropped)
    settings = dataclasses.replace(SETTINGS, weight_decay=0.3)
    runs = both([Encode(), expose], tmp_path, settings=settings, data=data)
    for (encoded, _), weights in runs:
        assert all(torch.equal(weights[k], v) for k, v in start.items() if k != words)
        moved = np.flatnonzero((weights[words] != start[words]).any(1).numpy())
        assert set(moved) == set(encoded.ids) - set(dropped)


def with_branches(make):
    """The same model with branches none of whose factors starts at zero."""

    def made(seed):
        model, tokenizer = make(seed)
        torch.manual_seed(seed)
        config = MuscleloraConfig(scales=(1, 2, 3), rank=2, init="reference")
        insert(model, Musclelora(config).branches(model))
        return model, tokenizer

    return made


ALIGNMENTS = {
    "one pass": {},
    "two passes": {"passes": "two"},
    "blended": {"min_reference_loss": 9.0, "first_blend_epoch": 0, "max_raw_weight": 0.5},
    "all together": {"granularity": "global", "rule": "signed"},
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_both_drivers_align_alike(name, accumulation, tmp_path):
    settings = dataclasses.replace(SETTINGS, accumulation=accumulation)
    alignment = Alignment(
        **{"reference": tiny_rows(9, 1), "batch_size": 4, "min_reference_loss": 0.0, **ALIGNMENTS[name]}
    )
    make = with_branches(tiny_classifier)
    runs = both([Train(name="t", epochs=2, alignment=alignment)], tmp_path, settings=settings, make=make)
    assert changed(runs, make)
    assert_same(runs)
    reports = [answers[0].alignment for answers, _ in runs]
    assert reports[0].pop("passes") == reports[1].pop("passes") == ("two" if name == "two passes" else "one")
    assert reports[0] == pytest.approx(reports[1], rel=1e-5)


def test_both_drivers_align_causal_models_alike(tmp_path):
    settings = dataclasses.replace(SETTINGS, accumulation=2)
    alignment = Alignment(reference=tiny_pairs(9, 1), batch_size=4, min_reference_loss=0.0)
    make = with_branches(tiny_causal)
    requests = [Train(name="t", steps=6, alignment=alignment)]
    runs = both(requests, tmp_path, settings=settings, make=make, data=tiny_pairs(40, 0))
    assert changed(runs, make)
    assert_same(runs)


def test_both_drivers_align_all_weights_alike(tmp_path):
    alignment = Alignment(reference=tiny_rows(9, 1), batch_size=4, min_reference_loss=0.0)
    runs = both([Train(name="t", steps=6, alignment=alignment)], tmp_path)
    assert changed(runs)
    assert_same(runs)
