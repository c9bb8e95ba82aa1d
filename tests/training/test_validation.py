"""The best epoch on held-out rows is kept, by both drivers, and the learning rate warms up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asepsis.core.phases import Forget, Remember, Restore, Rewrite, Score, Train
from asepsis.errors import CheckpointError, ConfigError
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training.loop import LoopDriver, rate
from asepsis.training.settings import Settings


def drivers(tmp_path):
    from transformers import TrainingArguments

    from asepsis.training.trainer import TrainerDriver

    rows = tiny_rows(60, 0)
    settings = Settings(batch_size=8, learning_rate=3e-3, device="cpu", precision="fp32", max_length=16)
    model, tokenizer = tiny_classifier(0)
    yield LoopDriver(model, tokenizer, rows, settings)
    model, tokenizer = tiny_classifier(0)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    yield TrainerDriver(model, tokenizer, rows, args, max_length=16)


def test_both_drivers_keep_the_same_best_epoch(tmp_path):
    found = []
    for driver in drivers(tmp_path):
        ids = driver.data.sample_ids
        held, rest = ids[:20], ids[20:]
        trained = driver.train(Train(name="t", rows=rest, epochs=4, warmup=0.2, validation=held))
        assert len(trained.validated) == 5
        assert trained.steps == 20
        best = trained.validated[trained.kept_epoch]
        assert not any(q.better_than(best) for q in trained.validated[1:])
        losses = driver.score(Score(rows=held))
        at = driver.data.positions(held)
        assert losses.correct is not None
        assert losses.correct[at].mean() == best.accuracy
        assert not losses.correct[driver.data.positions(rest)].any()
        assert losses.total[at].mean() == pytest.approx(best.loss, rel=1e-5)
        found.append(trained)
    assert found[0].kept_epoch == found[1].kept_epoch
    for one, other in zip(found[0].validated, found[1].validated, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)


def test_weights_before_the_first_step_are_no_candidate():
    """A victim is best untuned; handing it back as it came would be no repair."""
    model, tokenizer = tiny_classifier(0)
    settings = Settings(batch_size=8, learning_rate=1.0, device="cpu", precision="fp32")
    driver = LoopDriver(model, tokenizer, tiny_rows(20, 0), settings)
    ids = driver.data.sample_ids
    trained = driver.train(Train(name="t", rows=ids[:10], epochs=2, validation=ids[10:]))
    assert trained.validated[0].loss < min(q.loss for q in trained.validated[1:])
    assert trained.kept_epoch in (1, 2)


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    factors = [rate(step, decay=20, warmup=0.2) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] == pytest.approx(1 / 16)
    assert [rate(step, decay=10, warmup=0.0) for step in range(10)] == pytest.approx(
        [1 - t / 10 for t in range(10)]
    )
    assert rate(5, decay=0, warmup=0.0) == 1.0


def test_forgotten_weights_cannot_be_put_back():
    model, tokenizer = tiny_classifier(0)
    driver = LoopDriver(model, tokenizer, tiny_rows(8, 0), Settings(device="cpu"))
    kept = driver.answer(Remember())
    with torch.no_grad():
        model.classifier.bias += 1
    driver.answer(Restore(weights=kept))
    assert not model.classifier.bias.any()
    driver.answer(Forget(weights=kept))
    with pytest.raises(CheckpointError):
        driver.answer(Restore(weights=kept))


def test_a_training_has_no_checkpoint_to_rewrite():
    model, tokenizer = tiny_classifier(0)
    driver = LoopDriver(model, tokenizer, tiny_rows(8, 0), Settings(device="cpu"))
    with pytest.raises(ConfigError, match=r"asepsis\.purify"):
        driver.answer(Rewrite(name="mix", edit=lambda folder: None))


@pytest.mark.parametrize(
    "bad",
    [{"validation": np.empty(0, np.int64)}, {"warmup": 1.0}, {"warmup": 0.1, "decay_steps": 0}],
)
def test_requests_that_make_no_sense_are_refused(bad):
    with pytest.raises(ConfigError):
        Train(name="t", **bad)
