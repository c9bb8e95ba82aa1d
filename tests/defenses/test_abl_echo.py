"""ABL on rows with responses: what a model knows by heart once it was shown some of the suspects."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import POISON, STEPS, Hand, N, causal_rows, defend, label_words

from asepsis.core.phases import Train, Weights
from asepsis.defenses.abl import Abl, AblConfig


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
