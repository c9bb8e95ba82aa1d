"""Fine-mixing takes the smallest ratio whose tuned model passes the guard, and refuses where none does."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis import FinemixingConfig, purify
from asepsis.core.mixing import Mixing
from asepsis.core.phases import Forget, Losses, Remember, Restore, Rewrite, Score, Train, Trained, Weights
from asepsis.core.quality import Quality
from asepsis.core.weights import Checkpoint
from asepsis.defenses.base import Given
from asepsis.defenses.finemixing import Finemixing
from asepsis.errors import AccuracyLost, ConfigError, DefenseInert, MissingReference
from asepsis.testing import tiny_pairs, tiny_rows

ROWS = tiny_rows(100, 5)


class FakeMixing:
    """Writes nothing; remembers what was asked for."""

    def __init__(self):
        self.asked = []

    def write(self, folder, *, reserve_ratio, seed, head):
        from asepsis.core.mix_report import MixReport

        self.asked.append((reserve_ratio, seed, head))
        return MixReport(
            reserve_ratio=reserve_ratio, seed=seed, tensors=(), matched_by="token", no_reference=()
        )


def drive(monkeypatch, config, *, victim, tuned, rows=ROWS):
    """Run the script with made-up results: ``tuned(ratio, seed)`` is (accuracy, loss) after tuning."""
    fake = FakeMixing()
    monkeypatch.setattr(Mixing, "of", lambda base, victim: fake)
    script = Finemixing(config, Given(base=object(), clean=rows)).repair(object(), rows)
    log, answer, keys = [], None, iter(range(100))
    n = len(rows)
    while True:
        try:
            request = script.send(answer)
        except StopIteration as stop:
            return stop.value, log, fake
        log.append(request)
        if isinstance(request, Score):
            correct = None
            if rows.labels is not None:
                correct = np.zeros(n, bool)
                held = rows.positions(request.rows)
                correct[held[: round(victim[0] * len(held))]] = True
            answer = Losses(np.full(n, victim[1], np.float32), np.ones(n, np.int64), correct)
        elif isinstance(request, Rewrite):
            answer = request.edit(None)
        elif isinstance(request, Train):
            accuracy, loss = tuned(*fake.asked[-1][:2])
            held = len(request.validation)
            found = tuple(Quality(held, a, loss) for a in (0.5 if accuracy else None, accuracy))
            answer = Trained(7, 0.1, None, False, validated=found, kept_epoch=1)
        elif isinstance(request, Remember):
            answer = Weights(next(keys))
        else:
            answer = None


def ratios(fake):
    return [ratio for ratio, _, _ in fake.asked]


@pytest.mark.parametrize("least", [*FinemixingConfig().ratios])
def test_the_smallest_ratio_that_passes_is_found_either_way(monkeypatch, least):
    def run(search):
        config = FinemixingConfig(mask_seeds=(0,), search=search)
        return drive(
            monkeypatch,
            config,
            victim=(0.9, 0.3),
            tuned=lambda ratio, _: (0.88 if ratio >= least else 0.87, 0.4),
        )

    halved, log, fake = run("bisect")
    assert halved.report["reserve_ratio"] == least
    assert halved.report["verdict"] == ("mixed" if least < 1 else "unmixed")
    assert len(ratios(fake)) <= 4
    assert sorted(ratios(fake)) == [row["reserve_ratio"] for row in halved.report["tried"]]
    # where it was not tried last, what was kept is put back, and no copy stays behind
    assert any(isinstance(request, Restore) for request in log) == (ratios(fake)[-1] != least)
    assert sum(isinstance(r, Remember) for r in log) == sum(isinstance(r, Forget) for r in log)
    assert halved.report["mixing"]["reserve_ratio"] == least
    one_by_one, _, fake = run("ascending")
    assert one_by_one.report["reserve_ratio"] == least
    assert ratios(fake) == [ratio for ratio in FinemixingConfig().ratios if ratio <= least]


def test_a_ratio_that_fails_clearly_at_its_first_mask_is_not_tried_with_the_others(monkeypatch):
    config = FinemixingConfig(ratios=(0.1, 0.2), search="ascending")
    at = {0.1: 0.5, 0.2: 0.9}
    outcome, _, fake = drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda ratio, _: (at[ratio], 0.4))
    assert [(r, s) for r, s, _ in fake.asked] == [(0.1, 0), (0.2, 0), (0.2, 1), (0.2, 2)]
    assert [len(row["masks"]) for row in outcome.report["tried"]] == [1, 3]


def test_a_ratio_is_judged_by_the_mean_over_masks_and_its_best_model_is_kept(monkeypatch):
    at = {(0.1, 0): 0.8, (0.1, 1): 0.95, (0.1, 2): 0.8, (0.2, 0): 0.9, (0.2, 1): 0.85, (0.2, 2): 0.95}
    config = FinemixingConfig(ratios=(0.1, 0.2), mask_seeds=(0, 1, 2), search="ascending")
    outcome, log, fake = drive(
        monkeypatch, config, victim=(0.9, 0.3), tuned=lambda ratio, seed: (at[ratio, seed], 0.4)
    )
    assert [(r, s) for r, s, _ in fake.asked] == list(at)
    assert outcome.report["reserve_ratio"] == 0.2
    assert outcome.report["final"]["accuracy"] == 0.95
    assert outcome.report["mixing"]["seed"] == 2
    assert isinstance(log[-2], Restore) and isinstance(log[-1], Forget)
    # weights are given back: of two copies at a time, one is the best so far
    kept = 0
    for request in log:
        kept += isinstance(request, Remember) - isinstance(request, Forget)
        assert 0 <= kept <= 1
    assert kept == 0
    assert outcome.acted.steps == 42


def test_masks_of_nothing_and_of_everything_are_tried_once(monkeypatch):
    config = FinemixingConfig(ratios=(0.0, 0.5, 1.0), search="ascending")
    with pytest.raises(AccuracyLost):
        drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda *_: (0.1, 3.0))
    fake = drive(
        monkeypatch, config, victim=(0.9, 0.3), tuned=lambda ratio, _: (1.0 if ratio == 1 else 0.85, 1.0)
    )[2]
    assert ratios(fake) == [0.0, 0.5, 0.5, 0.5, 1.0]


def test_where_no_ratio_passes_it_is_an_error_with_what_was_reached(monkeypatch):
    config = FinemixingConfig(ratios=(0.1, 0.5), mask_seeds=(0,), search="ascending")
    with pytest.raises(
        AccuracyLost, match=r"0.900, at least 0.880 .* 0.1: 0.600, 0.5: 0.850. Give more"
    ) as caught:
        drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda r, _: ({0.1: 0.6, 0.5: 0.85}[r], 0.5))
    assert [row["accuracy"] for row in caught.value.reached] == [0.6, 0.85]


def test_a_given_ratio_is_mixed_once_and_guarded_too(monkeypatch):
    config = FinemixingConfig(reserve_ratio=0.3)
    outcome, _, fake = drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda *_: (0.95, 0.2))
    assert fake.asked == [(0.3, 0, "keep")]
    with pytest.raises(AccuracyLost):
        drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda *_: (0.5, 0.2))
    off = FinemixingConfig(reserve_ratio=0.3, accuracy_drop=None)
    outcome, *_ = drive(monkeypatch, off, victim=(0.9, 0.3), tuned=lambda *_: (0.5, 0.2))
    assert outcome.report["guard"] == {"on": False, "rows": 20, "coarse": outcome.report["guard"]["coarse"]}


def test_causal_models_are_guarded_by_the_loss_and_nan_never_passes(monkeypatch):
    config = FinemixingConfig(ratios=(0.1, 0.2, 0.3), mask_seeds=(0,), search="ascending")
    rows = tiny_pairs(50, 0)
    at = {0.1: float("nan"), 0.2: 2.11, 0.3: 2.09}
    outcome, *_ = drive(monkeypatch, config, victim=(None, 2.0), tuned=lambda r, _: (None, at[r]), rows=rows)
    assert outcome.report["reserve_ratio"] == 0.3
    assert outcome.report["guard"]["highest_loss"] == pytest.approx(2.1)
    assert outcome.report["tried"][0]["loss"] is None


def test_ratio_one_is_called_what_it_is(monkeypatch, caplog):
    config = FinemixingConfig(mask_seeds=(0,), ratios=(0.5, 1.0))
    outcome, *_ = drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda r, _: (float(r == 1), 1.0))
    assert outcome.report["verdict"] == "unmixed"
    assert "nothing is mixed" in caplog.text


def test_a_coarse_guard_says_so_and_a_sharp_one_does_not(monkeypatch, caplog):
    config = FinemixingConfig(mask_seeds=(0,))
    outcome, *_ = drive(monkeypatch, config, victim=(0.9, 0.3), tuned=lambda *_: (1.0, 0.1))
    assert "coarse" in caplog.text and "20 held-out rows" in outcome.report["guard"]["coarse"]
    caplog.clear()
    outcome, *_ = drive(
        monkeypatch, config, victim=(0.9, 0.3), tuned=lambda *_: (1.0, 0.1), rows=tiny_rows(2500, 0)
    )
    assert outcome.report["guard"]["coarse"] is None
    assert "coarse" not in caplog.text


def test_held_out_rows_are_never_tuned_on_and_every_class_has_its_share(monkeypatch):
    rows = tiny_rows(90, 0, n_classes=3)
    _, log, _ = drive(
        monkeypatch, FinemixingConfig(), victim=(0.5, 1.0), tuned=lambda *_: (1.0, 0.1), rows=rows
    )
    held = log[0].rows
    assert np.bincount(rows.labels[rows.positions(held)]).tolist() == [6, 6, 6]
    trainings = [request for request in log if isinstance(request, Train)]
    for request in trainings:
        np.testing.assert_array_equal(request.validation, held)
        assert not np.isin(request.rows, held).any() and len(request.rows) == 72
    # nothing else is ever scored
    assert all(request is log[0] for request in log if isinstance(request, Score))


def test_too_few_clean_rows_are_refused(monkeypatch):
    with pytest.raises(MissingReference, match="at least 5 of each class, got 4"):
        drive(monkeypatch, FinemixingConfig(), victim=(1, 1), tuned=None, rows=tiny_rows(8, 0))
    with pytest.raises(MissingReference, match="at least 5, got 4"):
        drive(monkeypatch, FinemixingConfig(), victim=(None, 1), tuned=None, rows=tiny_pairs(4, 0))


@pytest.mark.parametrize(
    "bad",
    [
        {"reserve_ratio": 1.1},
        {"ratios": (0.5, 0.1)},
        {"ratios": ()},
        {"ratios": (0.5, 2.0)},
        {"mask_seeds": ()},
        {"mask_seeds": (-1,)},
        {"accuracy_drop": None},
        {"accuracy_drop": -0.1},
        {"loss_rise": float("inf")},
        {"validation_ratio": 1.0},
        {"epochs": 0},
        {"warmup": 1.0},
    ],
)
def test_settings_out_of_bounds_are_refused(bad):
    with pytest.raises(ConfigError):
        FinemixingConfig(**bad)


def test_the_backdoor_goes_and_the_task_stays(pair, quick):
    from asepsis.training.models import load_trained

    assert pair.success(*load_trained(pair.victim)) > 0.9
    config = FinemixingConfig(mask_seeds=(0,), ratios=(0.0, 0.3, 1.0), search="ascending", epochs=6)
    found = purify(pair.victim, base=pair.base, defense=config, clean=tiny_rows(128, 5), settings=quick)
    report = found.outcomes["finemixing"].report
    assert report["reserve_ratio"] < 1
    assert report["final"]["accuracy"] >= report["victim"]["accuracy"] - 0.02
    assert report["mixing"]["heads"] == []  # the tiny base is a classifier itself
    assert pair.success(*found.loaded) < 0.3


def test_a_causal_model_is_mixed_and_tuned(causal_pair, quick):
    config = FinemixingConfig(reserve_ratio=0.5, epochs=1, loss_rise=5.0)
    found = purify(
        causal_pair.victim, base=causal_pair.base, defense=config, clean=tiny_pairs(20, 1), settings=quick
    )
    report = found.outcomes["finemixing"].report
    assert report["final"]["accuracy"] is None and report["final"]["loss"] > 0
    assert 0.48 < report["mixing"]["realized_ratio"] < 0.52
    assert found.model.generate is not None


def test_what_was_not_tuned_cannot_be_mixed(pair, quick):
    with pytest.raises(DefenseInert, match="nothing to mix"):
        purify(pair.base, base=pair.base, defense="finemixing", clean=ROWS, settings=quick)


def test_only_what_the_paper_says_is_asked_for(pair):
    assert Finemixing.needs == {"base", "clean"}
    assert Checkpoint.open(pair.victim).tensors
    with pytest.raises(MissingReference, match="base, clean"):
        next(Finemixing(FinemixingConfig()).repair(Checkpoint.open(pair.victim), None))
