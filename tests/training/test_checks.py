"""A stop rule of the script's own: what is kept, what is taken, what is gone back to."""

from __future__ import annotations

import pytest
import torch

from asepsis.core.phases import Checks, Score, Train
from asepsis.errors import ConfigError
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training import Settings
from asepsis.training.loop import LoopDriver

SETTINGS = Settings(batch_size=8, max_length=16, learning_rate=1e-3, device="cpu", precision="fp32")


def trained(verdicts=None, *, steps=6, every=1, network=False):
    """Train a tiny classifier under a rule that says these words, by step; return it and what was asked when."""
    model, tokenizer = tiny_classifier(0)
    own, _ = tiny_classifier(0)
    rows, seen = tiny_rows(32, 0), []

    def look(step):
        losses = yield Score(name="", rows=rows.sample_ids[:4], network=own if network else None)
        seen.append((step, float(losses.mean[:4].mean())))
        assert losses.logits.shape == (32, 2)
        return verdicts.get(step, "go on")

    checks = None if verdicts is None else Checks(every=every, look=look)
    driver = LoopDriver(model, tokenizer, rows, SETTINGS)
    request = Train(name="t", steps=steps, decay_steps=100, checks=checks, network=own if network else "full")
    answer = driver.train(request)
    return (own if network else model), answer, seen, model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_looks_come_every_few_steps_and_after_the_last():
    _, answer, seen, _ = trained({}, steps=5, every=2)
    assert [step for step, _ in seen] == [2, 4, 5]
    assert (answer.steps, answer.stopped_early) == (5, False)


def test_looking_changes_nothing():
    plain, *_ = trained()
    looked, *_ = trained({})
    assert same(plain, looked) and looked.training == plain.training


def test_what_is_taken_is_where_the_training_stops():
    taken, answer, seen, _ = trained({3: "take"})
    assert answer.steps == 3 and answer.stopped_early and len(seen) == 3
    assert same(taken, trained(steps=3)[0])


def test_going_back_is_to_what_was_kept_last():
    back, answer, _, _ = trained({1: "keep", 2: "keep", 4: "back"})
    assert answer.steps == 4 and same(back, trained(steps=2)[0])


def test_what_was_kept_is_where_a_full_training_ends():
    kept, answer, _, _ = trained({2: "keep"})
    assert answer.steps == 6 and not answer.stopped_early and same(kept, trained(steps=2)[0])


def test_a_network_of_the_scripts_own_learns_and_the_model_does_not():
    own, _, seen, model = trained({2: "keep", 4: "back"}, network=True)
    untouched, _ = tiny_classifier(0)
    assert same(model, untouched) and same(own, trained(steps=2)[0])
    assert seen[-1][1] != seen[0][1], "the network is what was scored"


def test_a_learning_rate_of_the_request_wins_over_the_users():
    model, tokenizer = tiny_classifier(0)
    rows = tiny_rows(32, 0)
    LoopDriver(model, tokenizer, rows, SETTINGS).train(Train(name="t", steps=2, learning_rate=1e-9))
    moved = [
        (a - b).abs().max()
        for a, b in zip(model.parameters(), tiny_classifier(0)[0].parameters(), strict=True)
    ]
    assert max(float(m.detach()) for m in moved) < 1e-6


def test_two_ways_to_choose_weights_are_refused():
    with pytest.raises(ConfigError, match="both choose weights"):
        Train(
            name="t",
            validation=tiny_rows(8, 0).sample_ids,
            checks=Checks(every=1, look=lambda step: iter(())),
        )
