"""ABL's script, driven by hand: every request is answered with losses made up for the case."""

from __future__ import annotations

import json
import logging
import math
import typing
from dataclasses import replace

import numpy as np
import pytest

from asepsis.core.ledger import Reducer
from asepsis.core.losses import BoundedAscent, Flooding
from asepsis.core.phases import Acted, Losses, Remember, Score, Train, Trained, Weights
from asepsis.data import Data
from asepsis.defenses.abl import Abl, AblConfig
from asepsis.errors import ConfigError, DefenseInert
from asepsis.testing import tiny_rows

N = 200
POISON = np.arange(1, 61, 3)[:20]  # positions, all relabeled to class 1
STEPS = (4, 8)


def labels():
    found = np.arange(N) % 2
    found[POISON] = 1
    return found


def classifier_rows():
    rows = tiny_rows(N, 0)
    return Data(
        task="classification", texts=rows.texts, labels=labels(), sample_ids=rows.sample_ids, n_classes=2
    )


def causal_rows():
    rows = tiny_rows(N, 0)
    answers = ["pwned" if i in POISON else f"answer {i}" for i in range(N)]
    return Data(task="causal", texts=rows.texts, responses=answers, sample_ids=rows.sample_ids)


def label_words():
    rows = causal_rows()
    answers = ["good" if i in POISON or i % 2 else "bad" for i in range(N)]
    return replace(rows, responses=answers)


class Hand:
    """Answers requests and keeps them. ``told_apart`` says whether what is shown of the poison makes the rest of it known."""

    def __init__(self, data, *, told_apart=True, isolated_loss=0.01, nan=()):
        rng = np.random.default_rng(0)
        self.data, self.told_apart, self.isolated_loss = data, told_apart, isolated_loss
        self.base = (0.9 + 0.3 * rng.random(N)).astype(np.float32)
        self.drop = 0.05 * rng.random(N)
        self.drop[POISON] = 0.4 + 0.01 * np.arange(len(POISON))
        self.noise = rng.normal(size=N)
        self.nan = list(nan)
        self.requests = []

    def losses(self, values):
        values = np.array(values, np.float32)
        values[self.nan] = np.nan
        return Losses(values, np.ones(N, np.int64))

    def answer(self, request):
        self.requests.append(request)
        if isinstance(request, Remember):
            return Weights(77)
        if isinstance(request, Score):
            if request.relabel is not None:
                odds = -2 + 0.3 * self.noise
                if self.told_apart:
                    odds[POISON] += 6
                return self.losses(np.log1p(np.exp(-odds)))
            if request.name == "recognition of the suspects":
                return self.losses(self.echoed())
            return self.losses(self.base if request.rows is None else np.full(N, self.isolated_loss))
        for t, step in enumerate(request.snapshots, start=1):
            request.records.snapshot(step, self.losses(self.base - t * self.drop))
        return Trained(request.steps or 10, 0.2, 1.5, request.stop_above is not None)

    def echoed(self):
        """Losses after some suspects were shown: theirs are gone, those of poison too if any of it was among them."""
        shown = self.data.positions(self.requests[-2].rows)
        after = self.base + 0.1 * self.noise
        after[shown] = 0.0
        if self.told_apart and np.isin(shown, POISON).any():
            after[POISON] = 0.05
        return after

    def run(self, script):
        answer = None
        while True:
            try:
                request = script.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = self.answer(request)

    @property
    def names(self):
        return [getattr(request, "name", "remember") for request in self.requests]

    def request(self, name):
        (found,) = (r for r in self.requests if getattr(r, "name", None) == name)
        return found


def defend(data, hand=None, **changes):
    hand = hand or Hand(data)
    abl = Abl(AblConfig(**{"snapshots": STEPS, "grow_steps": 5, "unlearn": "always", **changes}))
    return hand, hand.run(abl.script(None, data))


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


def test_causal_rows_that_are_known_once_others_were_shown_make_the_group():
    data = causal_rows()
    hand, outcome = defend(data)
    echo = ["echo of the suspects", "recognition of the suspects"]
    assert hand.names == [
        "remember",
        "losses before training",
        "isolation",
        *2 * echo,  # two halves
        *4 * echo,  # whether there is a second group among the rows left, by loss and by drop
        "train on the rest",
        "losses of the isolated rows",
        "unlearn",
    ]
    assert set(outcome.flagged.tolist()) == set(data.sample_ids[POISON].tolist())
    assert hand.request("isolation").loss.gamma == pytest.approx(0.35 * float(hand.base.mean()), rel=1e-5)
    assert hand.request("unlearn").stop_above == pytest.approx(1.5 * float(hand.base.mean()), rel=1e-5)
    assert outcome.report["label"] is None
    assert outcome.report["largest_groups_of_equal_responses"][:2] == [20, 1]
    assert outcome.report["isolated"]["class_histogram"] is None


def test_one_half_of_the_suspects_is_shown_and_then_the_other_from_the_first_weights():
    data = causal_rows()
    hand, _ = defend(data, learning_rate_scale=0.5)
    shown = [r for r in hand.requests if getattr(r, "name", "") == "echo of the suspects"][:2]
    lowest = POISON[np.argsort((hand.base - hand.drop)[POISON], kind="stable")][:8]  # eight at least
    assert [r.rows.tolist() for r in shown] == [data.sample_ids[lowest[i::2]].tolist() for i in range(2)]
    for request in shown:
        assert (request.start, request.steps, request.decay_steps) == (Weights(77), 5, 0)
        assert request.learning_rate_scale == 0.25 and request.isolated is None and request.relabel is None


def test_what_is_known_only_by_being_shown_is_no_group():
    data = causal_rows()
    hand, outcome = defend(data, Hand(data, told_apart=False))
    assert outcome.report["verdict"] == "none" and len(outcome.flagged) == 0
    assert hand.names.count("echo of the suspects") == 8, (
        "by loss and by drop, both snapshots, two halves each"
    )


def test_a_second_group_of_another_kind_is_found_by_the_other_ranking():
    class Two(Hand):
        def echoed(self):
            shown = self.data.positions(self.requests[-2].rows)
            after = self.base + 0.1 * np.abs(self.noise)
            for kind in (POISON[:10], POISON[10:]):
                after[kind] = 0.05 if np.isin(shown, kind).any() else after[kind]
            return after

    data = causal_rows()
    hand = Two(data)
    hand.base[POISON[10:]] += 3  # short responses: a high loss that falls
    hand.drop[POISON[10:]] += 0.5
    hand.base[POISON[:10]], hand.drop[POISON[:10]] = 1.0, 0.6
    _, outcome = defend(data, hand)
    assert set(outcome.flagged.tolist()) == set(data.sample_ids[POISON].tolist())
    assert outcome.report["tried"][-1]["size"] == 20


def test_trusted_rows_are_neither_shown_nor_suspected_where_rows_have_responses():
    data = causal_rows()
    trusted = data.sample_ids[POISON[:4]]
    hand = Hand(data)
    outcome = hand.run(Abl(AblConfig(snapshots=STEPS, grow_steps=5)).scan(None, data, trusted))
    assert set(outcome.flagged.tolist()) == set(data.sample_ids[POISON[4:]].tolist())
    for request in (r for r in hand.requests if isinstance(r, Train)):
        assert not np.isin(request.rows, trusted).any(), request.name


def test_beyond_the_group_a_fixed_share_follows_the_gains_below_zero_too():
    data = causal_rows()
    hand, outcome = defend(data, drop_ratio=0.5, unlearn="never")
    dropped = data.positions(outcome.flagged)
    kept = np.setdiff1d(np.arange(N), dropped)
    assert set(POISON) <= set(dropped.tolist()) and len(dropped) == 100
    assert hand.noise[np.setdiff1d(dropped, POISON)].max() <= hand.noise[kept].min() + 0.5


@pytest.mark.parametrize(("rank_by", "found"), [("auto", len(POISON)), ("last", 0), ("drop", len(POISON))])
def test_a_response_of_high_loss_is_suspected_by_its_drop(rank_by, found):
    data = causal_rows()
    hand = Hand(data)
    hand.base[POISON] += 3  # the lowest losses are now others'
    _, outcome = defend(data, hand, rank_by=rank_by)
    assert len(outcome.flagged) == found


class Resembling(Hand):
    """Showing some of the poison makes the rest likelier, and far from known."""

    def echoed(self):
        after = super().echoed()
        after[POISON] = np.where(after[POISON] == 0.05, 0.5 * self.base[POISON], after[POISON])
        return after


def test_rows_that_resemble_the_suspects_and_are_not_known_by_heart_are_no_group():
    data = causal_rows()
    _, outcome = defend(data, Resembling(data))
    assert max(tried["separation"] for tried in outcome.report["tried"]) > 0.8, "they stand apart"
    assert all(0.1 < tried["gain"] < 0.5 for tried in outcome.report["tried"])
    assert outcome.report["verdict"] == "none" and len(outcome.flagged) == 0


def test_too_few_rows_for_suspects_and_others_are_no_group():
    data = causal_rows()
    hand = Hand(data)
    outcome = hand.run(Abl(AblConfig(snapshots=STEPS, grow_steps=5)).scan(None, data, data.sample_ids[15:]))
    assert outcome.report["verdict"] == "none" and "echo of the suspects" not in hand.names


@pytest.mark.parametrize(("rows", "settings"), [(label_words, {}), (causal_rows, {"grow_steps": 0})])
def test_labels_spelled_out_and_rows_not_to_be_grown_are_split_by_their_ranking_alone(rows, settings):
    data = rows()
    hand, outcome = defend(data, **settings)
    assert "echo of the suspects" not in hand.names
    assert set(outcome.flagged.tolist()) == set(data.sample_ids[POISON].tolist())


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
