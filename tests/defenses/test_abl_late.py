"""ABL's third snapshot: poison that is learned after the task, against it, and is but a part of the first suspects."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import POISON, Hand, N, causal_rows, classifier_rows, defend, labels

from asepsis.core.phases import Losses, Remember, Train, Trained, Weights
from asepsis.defenses._abl_groups import GATHERED, LATE_TESTS
from asepsis.defenses.abl import Abl, AblConfig
from asepsis.testing import tiny_rows

THREE = (4, 8, 16)
RISEN = {4: 0.0, 8: -0.4, 16: 0.1}  # what the poison's loss has lost at a step: the task raises it first
# Rows that are in doubt at the second snapshot fall as far as the poison does afterwards.
IN_DOUBT = np.setdiff1d(np.flatnonzero(labels() == 1), POISON)[:16]


class Late(Hand):
    """A model whose answer to suspects stands apart only where nearly all that was shown is poison."""

    def answer_for_all(self, request):
        if getattr(request, "name", "") == "isolation":
            self.requests.append(request)
            late, jitter = np.union1d(POISON, IN_DOUBT), np.random.default_rng(1).random(N)
            for step in request.snapshots:
                losses = self.base - 0.01 * step * self.drop
                losses[late] = (self.base - RISEN[step] * (1 + 0.1 * jitter))[late]
                request.records.snapshot(step, self.losses(losses))
            return Trained(request.steps, 0.2, 1.5, False)
        if getattr(request, "name", "").startswith("recognition"):
            self.requests.append(request)
            poison = np.isin(self.data.positions(self.shown()), POISON).mean()
            odds = -2 + 0.3 * self.noise
            odds[POISON] += 6 if poison > 0.9 else 1 if poison > 0.2 else 0
            return self.losses(np.log1p(np.exp(-odds)))
        return super().answer_for_all(request)

    def shown(self):
        return next(r.isolated for r in reversed(self.requests) if getattr(r, "isolated", None) is not None)


def late(hand=None, **changes):
    return defend(
        classifier_rows(), hand or Late(classifier_rows()), snapshots=THREE, unlearn="auto", **changes
    )


def isolation(data, **settings):
    """Return the first request for training, of settings that choose their own steps."""
    script = Abl(AblConfig(**settings)).script(None, data)
    request = next(script)
    while not isinstance(request, Train):
        flat = Losses(np.ones(len(data), np.float32), np.ones(len(data), np.int64))
        request = script.send(Weights(77) if isinstance(request, Remember) else flat)
    return request


def test_poison_learned_late_is_found_when_its_suspects_are_tested_again():
    hand, outcome = late(seed_ratio=0.04)
    assert set(outcome.flagged.tolist()) == set(hand.data.sample_ids[POISON].tolist())
    assert (outcome.report["verdict"], outcome.report["chosen_step"]) == ("found", 16)
    in_class = [tried for tried in outcome.report["tried"] if (tried["step"], tried["label"]) == (16, 1)]
    first, second = in_class[:2]
    assert first["separation"] < outcome.report["separation_wanted"] < second["separation"]


def test_the_second_test_is_of_what_the_first_ranked_lowest():
    hand, outcome = late(seed_ratio=0.04)
    contrasts = [r for r in hand.requests if getattr(r, "name", "").startswith("contrast")]
    first, second, *_ = [
        hand.data.positions(request.isolated)
        for request, tried in zip(contrasts, outcome.report["tried"], strict=False)
        if (tried["step"], tried["label"]) == (16, 1)
    ]
    assert (len(first), len(second)) == (8, 4), "a mixture is shown twice as many"
    assert 0 < np.isin(first, POISON).mean() < 0.9
    assert np.isin(second, POISON).all()


def test_two_snapshots_do_not_see_it():
    _, outcome = defend(classifier_rows(), Late(classifier_rows()), snapshots=THREE[:2], seed_ratio=0.04)
    assert outcome.report["verdict"] == "none"
    assert len(outcome.flagged) == 0


class Common(Late):
    """A third of all rows, of either class, has a word in common, and the model tells late suspects apart by it."""

    def answer_for_all(self, request):
        answer = super().answer_for_all(request)
        if getattr(request, "name", "").startswith("recognition") and len(request.rows) == N:
            odds = -2 + 0.3 * self.noise
            odds[::3] += 6
            return self.losses(np.log1p(np.exp(-odds)))
        return answer


def test_what_other_classes_have_as_well_is_no_trigger():
    _, outcome = late(Common(classifier_rows()), seed_ratio=0.04)
    assert outcome.report["verdict"] == "none"
    assert len(outcome.flagged) == 0
    of_late = [tried for tried in outcome.report["tried"] if tried["step"] == 16]
    assert max(tried["separation"] for tried in of_late) > 0.9, "it stands apart"
    assert min(tried["elsewhere"] for tried in of_late) > 0.5
    assert len(of_late) == 2 * GATHERED, "and is given up in either class"
    assert outcome.report["chosen_step"] != 16, "nor does what is no trigger rank the rows"


def test_late_suspects_are_tested_until_they_stand_apart_or_tests_run_out():
    data = classifier_rows()
    _, outcome = defend(data, Hand(data, told_apart=False), snapshots=THREE)
    in_class = [tried for tried in outcome.report["tried"] if tried["label"] == 1]
    assert [tried["step"] for tried in in_class] == [4, 8] + LATE_TESTS * [16]
    assert outcome.report["verdict"] == "none"
    assert ["elsewhere" in tried for tried in in_class] == [False, False] + LATE_TESTS * [True]


def test_trusted_rows_are_scored_by_late_tests_too_and_neither_trained_on_nor_suspected():
    data = classifier_rows()
    trusted = data.sample_ids[150:]
    hand = Late(data)
    abl = Abl(AblConfig(snapshots=THREE, grow_steps=5, seed_ratio=0.04))
    outcome = hand.run(abl.scan(None, data, trusted))
    assert outcome.report["chosen_step"] == 16
    assert not np.isin(outcome.flagged, trusted).any()
    in_class = np.flatnonzero((labels() == 1) & np.isin(data.sample_ids, trusted))
    assert len(set(outcome.suspicion[in_class].tolist())) == len(in_class), "clean rows calibrate a threshold"


def test_every_class_is_looked_into_early_before_any_is_looked_into_late():
    data = classifier_rows()
    _, outcome = defend(data, Hand(data, told_apart=False), snapshots=THREE)
    steps = [tried["step"] for tried in outcome.report["tried"]]
    assert steps == sorted(steps, key=lambda step: step == 16)
    assert {tried["label"] for tried in outcome.report["tried"] if tried["step"] == 16} == {0, 1}


@pytest.mark.parametrize("settings", [{"rank_by": "drop"}, {"rank_by": "last"}, {"grow_steps": 0}])
def test_nothing_is_looked_for_late_where_the_ranking_was_named_or_is_not_tested(settings):
    assert isolation(tiny_rows(1000, 0), **settings).snapshots == (20, 40)
    data = classifier_rows()
    _, outcome = defend(data, Hand(data, told_apart=False), snapshots=THREE, **settings)
    assert not any("elsewhere" in tried for tried in outcome.report["tried"])


def test_a_class_that_is_too_small_for_twice_the_suspects_is_tested_with_fewer():
    data = classifier_rows()
    hand, _ = defend(data, Hand(data, told_apart=False), snapshots=THREE, seed_ratio=0.2)
    tested = {name for name in hand.names if name.startswith("recognition")}
    late_scores = [r for r in hand.requests if getattr(r, "name", "") in tested and len(r.rows) == N]
    assert late_scores, "late tests took place"


def test_what_is_found_early_costs_no_test_more():
    data = classifier_rows()
    two, found = defend(data, snapshots=THREE[:2])
    three, same = defend(data, snapshots=THREE)
    assert three.names == two.names
    assert np.array_equal(same.suspicion, found.suspicion)


def test_as_it_stands_a_late_ranking_is_that_from_the_start():
    data = classifier_rows()
    _, outcome = defend(data, Late(data), snapshots=THREE, grow_steps=0, drop_ratio=0.1)
    losses = outcome.evidence["loss.values"]
    drops = [losses[0] - column for column in losses[1:]]
    assert any(np.allclose(outcome.suspicion, drop) for drop in drops)


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (tiny_rows(1000, 0), (20, 40, 120)),
        (tiny_rows(999, 0), (20, 40)),
        (causal_rows(1000), (20, 40)),
    ],
)
def test_the_steps_follow_the_task_and_the_rows(data, steps):
    request = isolation(data)
    assert request.snapshots == steps
    assert request.steps == steps[-1]
