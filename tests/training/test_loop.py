from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from asepsis.core.losses import BoundedAscent, Flooding, LossRule
from asepsis.core.phases import Acted, Outcome, Remember, Score, Train, Weights
from asepsis.errors import BackendError, CheckpointError, ConfigError, DefenseInert
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.loop import LoopDriver
from asepsis.training.settings import Settings
from asepsis.training.undefended import undefended

SETTINGS = Settings(epochs=1, batch_size=8, learning_rate=2e-3, device="cpu", precision="fp32", max_length=32)


def driver_for(data, *, dropout=0.1, progress=lambda *_: None, **changes):
    model, tokenizer = tiny_classifier(1, dropout=dropout)
    return LoopDriver(model, tokenizer, data, dataclasses.replace(SETTINGS, **changes), progress=progress)


def run(driver, *requests):
    answers = []

    def script():
        for request in requests:
            answers.append((yield request))
        return Outcome(acted=Acted(steps=1))

    driver.run(script())
    return answers


def weights(driver):
    return {k: v.clone() for k, v in driver.model.state_dict().items()}


def distance(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


class Sink:
    def __init__(self):
        self.steps, self.losses = [], []

    def snapshot(self, step, losses):
        self.steps.append(step)
        self.losses.append(losses)


@pytest.mark.parametrize("rule", [LossRule(), Flooding(0.3), Flooding(2.0), Flooding(0.69, "sample")])
def test_one_step_of_eight_rows_is_the_same_in_one_and_in_eight_parts(rule):
    data = tiny_rows(8, 0)
    found = []
    request = Train(name="t", loss=rule, steps=1)
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        driver = driver_for(data, dropout=0.0, batch_size=batch_size, accumulation=accumulation)
        before = weights(driver)
        (trained,) = run(driver, request)
        found.append((trained, weights(driver)))
        assert distance(before, found[-1][1]) > 1e-4
    for trained, after in found[1:]:
        assert trained.loss == pytest.approx(found[0][0].loss, rel=1e-5)
        for name, value in after.items():
            # AdamW's first step is a gradient over its own size: float noise decides where there is hardly any.
            apart = (value - found[0][1][name]).abs() > 1e-5
            assert apart.float().mean() < 1e-3, name


def test_the_parts_of_a_step_are_weighed_by_tokens_not_by_rows():
    data = tiny_pairs(8, 0)
    losses = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        model, tokenizer = tiny_causal(0)
        settings = dataclasses.replace(SETTINGS, batch_size=batch_size, accumulation=accumulation)
        driver = LoopDriver(model, tokenizer, data, settings)
        score, trained = run(driver, Score(), Train(name="t", steps=1))
        losses.append(trained.loss)
        over_tokens = score.total.sum() / score.count.sum()
        assert trained.loss == pytest.approx(over_tokens, rel=1e-5)
        assert abs(over_tokens - score.mean.mean()) > 1e-4, "the case must tell the two means apart"


def test_snapshots_come_at_their_steps_and_cover_every_row():
    data, sink = tiny_rows(20, 0), Sink()
    request = Train(name="t", rows=data.sample_ids[:4], steps=5, snapshots=(0, 2, 5), records=sink)
    driver = driver_for(data)
    before, _, after = run(driver, Score(), request, Score())
    assert sink.steps == [0, 2, 5]
    np.testing.assert_array_equal(sink.losses[0].total, before.total)
    np.testing.assert_array_equal(sink.losses[2].total, after.total)
    assert np.isfinite(sink.losses[1].total).all()
    assert not np.array_equal(sink.losses[0].total, sink.losses[1].total)


def test_taking_snapshots_does_not_change_the_training():
    data = tiny_rows(20, 0)
    plain, watched = driver_for(data), driver_for(data)
    run(plain, Train(name="t", steps=5))
    run(watched, Train(name="t", steps=5, snapshots=(1, 2, 3), records=Sink()))
    assert distance(weights(plain), weights(watched)) == 0


def test_the_ascent_stops_once_the_isolated_loss_is_above_the_limit():
    data = tiny_rows(40, 0)
    ids = data.sample_ids
    request = Train(
        name="t",
        rows=ids[8:],
        isolated=ids[:8],
        loss=BoundedAscent(3.0),
        steps=80,
        decay_steps=0,
        stop_above=0.9,
    )
    driver = driver_for(data, learning_rate=1e-2)
    (trained,) = run(driver, request)
    assert trained.stopped_early
    assert 5 <= trained.steps < 80
    assert trained.isolated_loss > 0.9
    (unbounded,) = run(driver_for(data), dataclasses.replace(request, steps=6, stop_above=50.0))
    assert (unbounded.steps, unbounded.stopped_early) == (6, False)


def test_remembered_weights_come_back_exactly():
    data = tiny_rows(16, 0)
    driver = driver_for(data)
    first = weights(driver)
    kept, _ = run(driver, Remember(), Train(name="away", steps=3))
    assert distance(first, weights(driver)) > 0
    run(driver, Train(name="back", steps=1, start=kept, learning_rate_scale=0.0))
    assert distance(first, weights(driver)) == 0


def test_weights_nobody_remembered_are_refused():
    with pytest.raises(CheckpointError, match="no weights were remembered under 9"):
        run(driver_for(tiny_rows(8, 0)), Train(name="t", steps=1, start=Weights(9)))


def test_a_nan_loss_raises_instead_of_training_on():
    driver = driver_for(tiny_rows(8, 0))
    with torch.no_grad():
        driver.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(DefenseInert, match="the loss was not finite by step 1"):
        run(driver, Train(name="t", steps=3))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    data = tiny_rows(24, 0)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(np.random.default_rng().integers(1000))  # the surrounding state must not matter
        driver = driver_for(data, seed=seed)
        run(driver, Train(name="t", steps=6))
        found.append(weights(driver))
    assert distance(found[0], found[1]) == 0
    assert distance(found[0], found[2]) > 0


def test_scoring_draws_no_dropout_and_leaves_unasked_rows_nan():
    data = tiny_rows(12, 0)
    driver = driver_for(data)
    driver.model.train()
    all_rows, some = run(driver, Score(), Score(rows=data.sample_ids[[3, 7]]))
    assert np.flatnonzero(np.isfinite(some.total)).tolist() == [3, 7]
    assert some.count.tolist() == [int(i in (3, 7)) for i in range(12)]
    np.testing.assert_allclose(some.total[[3, 7]], all_rows.total[[3, 7]], rtol=1e-5)
    assert driver.model.training, "scoring must put the mode back"


def test_rates_decay_to_zero_unless_constant_is_asked_for(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    driver = driver_for(tiny_rows(8, 0), learning_rate=1e-3)
    run(driver, Train(name="t", steps=4))
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    rates.clear()
    run(driver, Train(name="t", steps=3, decay_steps=0, learning_rate_scale=2.0))
    assert rates == [2e-3] * 3


def test_the_users_max_steps_bind_open_requests_only():
    driver = driver_for(tiny_rows(40, 0), max_steps=2)
    open_ended, fixed, epochs = run(
        driver, Train(name="t"), Train(name="t", steps=3), Train(name="t", epochs=1)
    )
    assert (open_ended.steps, fixed.steps, epochs.steps) == (2, 3, 5)
    assert driver.steps_done == 10


def test_plain_training_learns_the_task():
    data = tiny_rows(64, 0)
    driver = driver_for(data, epochs=12, learning_rate=5e-3)
    outcome = driver.run(undefended(len(data)))
    assert outcome.report["loss"] < 0.2
    assert outcome.acted == Acted(samples=64, steps=96)
    assert outcome.suspicion is None


def test_an_outcome_that_acted_on_nothing_is_refused():
    def idle():
        yield Score()
        return Outcome(acted=Acted())

    def forgetful():
        yield Score()

    driver = driver_for(tiny_rows(4, 0))
    with pytest.raises(DefenseInert, match="nothing was defended"):
        driver.run(idle())
    with pytest.raises(DefenseInert, match="NoneType instead of an Outcome"):
        driver.run(forgetful())


def test_progress_ends_at_the_whole():
    seen = []
    driver = driver_for(tiny_rows(10, 0), progress=lambda *call: seen.append(call), eval_batch_size=4)
    run(driver, Score(name="look"), Train(name="go", steps=2))
    assert seen == [("look", 4, 10), ("look", 8, 10), ("look", 10, 10), ("go", 1, 2), ("go", 2, 2)]


def test_devices_and_settings_that_cannot_be_are_refused():
    with pytest.raises(BackendError, match="not known"):
        driver_for(tiny_rows(4, 0), device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="no CUDA device"):
            driver_for(tiny_rows(4, 0), device="cuda")
    for bad in ({"batch_size": 0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}, {"max_steps": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Settings(**bad)
