"""ABL's script, driven by hand: every request is answered with losses made up for the case."""

from __future__ import annotations

import json
import logging
import math
import typing

import numpy as np
import pytest
from by_hand import POISON, STEPS, Hand, N, causal_rows, classifier_rows, defend, labels

from asepsis.core.ledger import Reducer
from asepsis.core.losses import BoundedAscent, Flooding
from asepsis.core.phases import Acted, Train, Trained, Weights
from asepsis.defenses.abl import Abl, AblConfig
from asepsis.errors import ConfigError, DefenseInert


def test_the_requests_come_in_the_papers_order():
    hand, outcome = defend(classifier_rows())
    assert hand.names == [
        "remember",
        "losses before training",
        "isolation",
        "contrast in class 1",
        "recognition in class 1",
        "contrast in class 1",  # whether there is a second group among the rows left
        "recognition in class 1",
        "train on the rest",
        "losses of the isolated rows",
        "unlearn",
    ]
    assert outcome.acted == Acted(samples=N, steps=10 + 120)


def test_isolation_floods_all_rows_at_a_constant_rate():
    data = classifier_rows()
    hand, _ = defend(data, learning_rate_scale=0.5)
    request = hand.request("isolation")
    assert request.loss == Flooding(0.217 * math.log(2), "batch")
    assert request.rows.tolist() == data.sample_ids.tolist()
    assert (request.steps, request.snapshots, request.decay_steps) == (8, STEPS, 0)
    assert request.learning_rate_scale == 0.5


def test_the_contrast_shows_every_second_suspect_of_the_class_by_drop():
    data = classifier_rows()
    hand, _ = defend(data)
    first = next(r for r in hand.requests if getattr(r, "name", "") == "contrast in class 1")
    # int(0.02 * 200) = 4 suspects, the largest drops first; the other two are held out.
    assert first.isolated.tolist() == data.sample_ids[POISON[[-1, -3]]].tolist()
    in_class = data.sample_ids[labels() == 1]
    assert set(first.rows.tolist()) == set(in_class.tolist()) - set(data.sample_ids[POISON[-4:]].tolist())
    assert (first.start, first.steps, first.decay_steps) == (Weights(77), 5, 0)
    shown = first.relabel.sample_ids[first.relabel.labels == 1]
    assert set(shown.tolist()) == set(first.isolated.tolist())


def test_the_grown_group_is_dropped_and_the_lowest_percent_unlearned():
    data = classifier_rows()
    hand, outcome = defend(data)
    poison = set(data.sample_ids[POISON].tolist())
    assert set(outcome.flagged.tolist()) == poison
    assert len(outcome.isolated) == int(0.01 * N)
    assert set(outcome.isolated.tolist()) <= poison
    rest = hand.request("train on the rest")
    assert rest.start == Weights(77), "the model is trained anew, not from where isolation left it"
    assert set(rest.rows.tolist()) == set(data.sample_ids.tolist()) - poison
    assert rest.steps is None
    assert rest.epochs is None
    unlearn = hand.request("unlearn")
    assert unlearn.loss == BoundedAscent(1.5 * 2 * math.log(2))
    assert unlearn.stop_above == pytest.approx(2 * math.log(2))
    assert unlearn.isolated.tolist() == outcome.isolated.tolist()
    assert not set(unlearn.rows.tolist()) & poison


def test_poison_is_the_most_suspicious_and_other_classes_are_ordinary():
    _, outcome = defend(classifier_rows())
    assert outcome.suspicion.dtype == np.float32
    assert outcome.suspicion[POISON].min() > np.delete(outcome.suspicion, POISON).max()
    assert len(np.unique(outcome.suspicion[labels() == 0])) == 1


def test_the_report_says_what_was_isolated_and_how_sure_it_is():
    _, outcome = defend(classifier_rows())
    report = json.loads(json.dumps(outcome.report, allow_nan=False))
    assert report["verdict"] == "found"
    assert (report["label"], report["group"], report["dropped"]) == (1, 20, 20)
    assert report["recognized"] == 1.0
    assert report["separation"] > report["separation_wanted"]
    assert report["snapshots"] == [0, *STEPS]
    assert report["nan_losses"] == 0
    assert report["agreement_of_neighbors"] == [1.0]
    assert report["lowest_class_histogram"] == [[0, 4], [0, 4]]
    isolated = report["isolated"]
    assert (isolated["k"], isolated["ties_at_threshold"], isolated["class_histogram"]) == (2, 1, [0, 2])
    assert isolated["threshold"] == np.sort(outcome.suspicion)[-2]
    assert [(t["step"], t["label"]) for t in report["tried"]] == [(4, 1), (4, 1), (4, 1)]
    assert report["unlearned"]["reached"] is True
    assert report["unlearned"]["steps"] == 120


@pytest.mark.parametrize("rank_by", typing.get_args(Reducer))
def test_every_reducer_of_the_ledger_can_rank(rank_by):
    data = causal_rows()
    hand, outcome = defend(data, rank_by=rank_by, drop_ratio=0.1, gamma=0.4)
    assert outcome.report["chosen_step"] in STEPS
    assert len(outcome.flagged) == 20
    assert hand.names[-1] == "unlearn"


@pytest.mark.parametrize(("rows", "same_as"), [(classifier_rows, "drop"), (causal_rows, "last")])
def test_the_ranking_follows_the_task(rows, same_as):
    data = rows()
    settings = {"drop_ratio": 0.1, "gamma": 0.4, "grow_steps": 0}
    outcomes = {name: defend(data, rank_by=name, **settings)[1] for name in ("auto", "drop", "last")}
    assert np.array_equal(outcomes["auto"].suspicion, outcomes[same_as].suspicion)
    assert not np.array_equal(outcomes["drop"].suspicion, outcomes["last"].suspicion)


def test_nothing_is_unlearned_where_it_was_not_learned():
    hand, outcome = defend(classifier_rows(), Hand(classifier_rows(), isolated_loss=1.5))
    assert "unlearn" not in hand.names
    assert outcome.report["unlearned"]["steps"] == 0
    assert outcome.acted.steps == 10


def test_by_default_only_what_was_not_dropped_is_unlearned():
    hand, outcome = defend(classifier_rows(), unlearn="auto")
    assert hand.names[-1] == "train on the rest"
    assert len(outcome.flagged) == 20
    assert len(outcome.isolated) == 2
    hand, outcome = defend(classifier_rows(), unlearn="auto", drop_ratio=0)
    assert hand.names[-1] == "unlearn"
    assert len(outcome.flagged) == 0


def test_unlearning_can_be_turned_off():
    hand, outcome = defend(classifier_rows(), unlearn="never")
    assert hand.names[-1] == "train on the rest"
    assert len(outcome.flagged) == 20


def test_a_share_per_class_is_unlearned_on_request():
    data = classifier_rows()
    _, outcome = defend(data, per_class=True, isolation_ratio=0.05)
    sizes = np.bincount(labels())
    assert outcome.report["isolated"]["class_histogram"] == [int(0.05 * n) for n in sizes]


def test_a_fixed_share_is_dropped_by_rank_even_where_nothing_stands_apart():
    data = classifier_rows()
    _, outcome = defend(data, Hand(data, told_apart=False), drop_ratio=0.1)
    assert len(outcome.flagged) == 20
    worst = data.sample_ids[np.argsort(-outcome.suspicion, kind="stable")[:20]]
    assert outcome.flagged.tolist() == worst.tolist()


def test_nothing_found_trains_on_everything_and_says_so(caplog):
    data = classifier_rows()
    hand = Hand(data, told_apart=False)
    with caplog.at_level(logging.WARNING, "asepsis"):
        hand, outcome = defend(data, hand)
    assert "no group of rows stands apart" in caplog.text
    assert hand.names[-1] == "train on the rest"
    assert set(hand.request("train on the rest").rows.tolist()) == set(data.sample_ids.tolist())
    assert len(outcome.flagged) == len(outcome.isolated) == 0
    assert outcome.report["verdict"] == "none"
    assert "isolated" not in outcome.report
    # both classes at both snapshots
    assert hand.names.count("contrast in class 0") == hand.names.count("contrast in class 1") == 2


def test_nothing_found_raises_on_request_before_the_long_training():
    data = classifier_rows()
    hand = Hand(data, told_apart=False)
    with pytest.raises(DefenseInert, match="no group of rows stands apart"):
        defend(data, hand, on_nothing_found="raise")
    assert "train on the rest" not in hand.names


def test_an_ascent_that_does_not_get_there_is_said(caplog):
    class Stubborn(Hand):
        def answer(self, request):
            answer = super().answer(request)
            if getattr(request, "name", "") == "unlearn":
                return Trained(120, 0.2, 0.3, False)
            return answer

    data = classifier_rows()
    with caplog.at_level(logging.WARNING, "asepsis"):
        _, outcome = defend(data, Stubborn(data))
    assert "did not reach" in caplog.text
    assert outcome.report["unlearned"]["reached"] is False
    assert outcome.report["unlearned"]["loss_after"] == 0.3


def test_rows_without_a_loss_are_counted_and_never_isolated():
    data, nan = causal_rows(), [0, 5]
    _, outcome = defend(data, Hand(data, nan=nan))
    assert outcome.report["nan_losses"] == 2
    assert np.isfinite(outcome.suspicion).all()
    assert (outcome.suspicion[nan] == outcome.suspicion.min()).all()
    assert not set(data.sample_ids[nan].tolist()) & {*outcome.flagged.tolist(), *outcome.isolated.tolist()}


def test_no_finite_loss_at_all_is_refused():
    data = causal_rows()
    with pytest.raises(DefenseInert, match="no row has a finite loss"):
        defend(data, Hand(data, nan=range(N)))


def test_a_scan_stops_at_the_verdict_and_leaves_trusted_rows_out():
    data = classifier_rows()
    trusted = data.sample_ids[150:]
    hand = Hand(data)
    outcome = hand.run(Abl(AblConfig(snapshots=STEPS)).scan(None, data, trusted))
    trains = [r for r in hand.requests if isinstance(r, Train)]
    assert hand.names[-1].startswith("recognition")
    assert set(outcome.flagged.tolist()) == set(data.sample_ids[POISON].tolist())
    for request in trains:
        touched = {*request.rows.tolist(), *(() if request.isolated is None else request.isolated.tolist())}
        assert not touched & set(trusted.tolist()), request.name
    assert outcome.acted == Acted(samples=150)
    assert np.isfinite(outcome.suspicion[150:]).all(), "trusted rows are scored"


@pytest.mark.parametrize(
    "bad",
    [
        {"isolation_ratio": 0.0},
        {"isolation_ratio": 0.5},
        {"seed_ratio": math.nan},
        {"snapshots": ()},
        {"snapshots": (0, 5)},
        {"snapshots": (5, 5)},
        {"drop_ratio": 1.0},
        {"drop_ratio": "most"},
        {"grow_steps": -1},
        {"learning_rate_scale": -0.1},
        {"most_groups": 0},
        {"length_buckets": 0},
        {"reduction": "mean"},
        {"on_nothing_found": "ignore"},
        {"per_class": 1},
        {"rank_by": "luck"},
        {"gamma": -1.0},
        {"gamma": 0.0},
        {"max_loss": -1.0},
        {"learning_rate_scale": math.nan},
    ],
)
def test_settings_out_of_bounds_are_refused_when_built(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AblConfig(**bad)
