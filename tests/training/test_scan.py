from __future__ import annotations

import json
import math

import numpy as np
import pytest

from asepsis.core.phases import Acted, Outcome, Score
from asepsis.defenses.abl import AblConfig
from asepsis.errors import ConfigError, DataError, DefenseInert, MissingReference
from asepsis.testing import tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, scan
from asepsis.training.scan import scan_data

SETTINGS = Settings(batch_size=8, learning_rate=1e-3, device="cpu", precision="fp32")


class Judge:
    """A method that gives each row the suspicion it is told to, the trusted rows the next ones."""

    def __init__(self, suspicion, flagged=(), report=None):
        self.suspicion, self.flagged, self.report = suspicion, flagged, report or {}

    def rows_learned(self, n):
        return 0

    def scan(self, model, data, trusted):
        self.trusted, self.seen = trusted, data
        yield Score()
        return Outcome(
            acted=Acted(samples=len(data)),
            suspicion=np.asarray(self.suspicion, np.float32),
            flagged=np.asarray(self.flagged, np.int64),
            report=self.report,
        )


@pytest.fixture
def judged(monkeypatch):
    def judge(data, judge, **options):
        monkeypatch.setattr(scan, "build", lambda choice: judge)
        monkeypatch.setattr(scan, "describe", lambda choice: {"name": "judge", "config": {}})
        model, tokenizer = tiny_classifier(0)
        return scan_data(data, model=model, processing_class=tokenizer, settings=SETTINGS, **options)

    return judge


def test_rows_strictly_above_the_clean_quantile_are_flagged(judged):
    data, clean = tiny_rows(10, 0), tiny_rows(9, 1)
    suspicion = [9, 8.5, 3, 10, 11, 12, 13, 14, 0, 1, *range(1, 10)]
    found = judged(data, Judge(suspicion), clean=clean, target_fpr=0.1)
    assert found.threshold == 9.0, "the largest of nine clean rows"
    assert np.flatnonzero(found.flagged).tolist() == [3, 4, 5, 6, 7]
    assert found.suspicion.tolist() == suspicion[:10], "the clean rows are not part of the result"
    assert found.verdict == "none", "of ten clean rows, five are above nine others two times in a hundred"


def test_the_trusted_rows_reach_the_method_under_ids_of_their_own(judged):
    data, clean = tiny_rows(10, 0), tiny_rows(9, 1)
    judge = Judge(np.zeros(19))
    judged(data, judge, clean=clean, target_fpr=0.1)
    assert not set(judge.trusted.tolist()) & set(data.sample_ids.tolist())
    assert [judge.seen.texts[p] for p in judge.seen.positions(judge.trusted)] == list(clean.texts)
    assert judge.seen.labels[10:].tolist() == clean.labels.tolist()


def test_as_many_flags_as_chance_gives_are_no_finding(judged):
    data, clean = tiny_rows(40, 0), tiny_rows(99, 1)
    few = judged(data, Judge(np.r_[np.full(5, 5.0), np.zeros(35), np.ones(99)]), clean=clean)
    assert few.flagged.sum() == 5
    assert few.verdict == "none", (
        "the five highest of 139 rows are among forty of them 1.6 times in a thousand"
    )
    many = judged(data, Judge(np.r_[np.full(6, 5.0), np.zeros(34), np.ones(99)]), clean=clean)
    assert many.verdict == "findings"
    assert math.comb(40, 6) / math.comb(139, 6) < 1e-3 < math.comb(40, 5) / math.comb(139, 5)


def test_without_clean_rows_the_methods_own_group_is_flagged(judged):
    data = tiny_rows(6, 0)
    found = judged(data, Judge([0, 5, 1, 7, 2, 3], flagged=data.sample_ids[[1, 3]]))
    assert np.flatnonzero(found.flagged).tolist() == [1, 3]
    assert (found.threshold, found.verdict) == (5.0, "findings")


@pytest.mark.parametrize(("said", "verdict"), [("none", "none"), ("doubtful", "inconclusive")])
def test_nothing_flagged_is_told_from_not_sure(judged, said, verdict):
    found = judged(tiny_rows(6, 0), Judge(np.arange(6), report={"verdict": said}))
    assert (found.threshold, found.verdict) == (None, verdict)
    assert not found.flagged.any()


def test_the_split_keeps_order_and_has_none_for_an_empty_part(judged):
    data = tiny_rows(6, 0)
    rest, flagged = judged(data, Judge(np.arange(6), flagged=data.sample_ids[[4, 1]])).split()
    assert rest.sample_ids.tolist() == data.sample_ids[[0, 2, 3, 5]].tolist()
    assert flagged.sample_ids.tolist() == data.sample_ids[[1, 4]].tolist()
    assert judged(data, Judge(np.arange(6))).split()[1] is None


def test_the_json_names_rows_by_place_and_by_id(judged):
    data = tiny_rows(3, 0)
    found = judged(data, Judge([0.5, 2, 1], flagged=data.sample_ids[[1]])).to_dict()
    written = json.loads(json.dumps(found, allow_nan=False))
    assert written["rows"][1] == {"row": 1, "sample_id": 101, "suspicion": 2.0, "flagged": True}
    assert (written["method"], written["n"], written["flagged"], written["threshold"]) == ("judge", 3, 1, 2.0)
    assert written["metrics"] is None


@pytest.mark.parametrize("snapshots", [(2, 4), (2, 4, 6)])
def test_abl_scans_and_never_flags_a_trusted_row(snapshots):
    model, tokenizer = tiny_classifier(0)
    found = scan_data(
        tiny_rows(60, 0),
        method=AblConfig(snapshots=snapshots, grow_steps=2),
        model=model,
        processing_class=tokenizer,
        clean=tiny_rows(30, 1),
        target_fpr=0.1,
        settings=SETTINGS,
    )
    assert found.suspicion.shape == found.flagged.shape == (60,)
    assert np.isfinite(found.suspicion).all()
    assert np.array_equal(found.flagged, found.suspicion > found.threshold)
    assert found.manifest["defense"]["name"] == found.method == "abl"
    assert found.manifest["acted"]["samples"] == 60, "trusted rows are not judged"


def test_a_rate_without_clean_rows_and_too_few_of_them_are_refused_before_training(judged):
    judge = Judge(np.zeros(3))
    with pytest.raises(ConfigError, match="needs clean rows"):
        judged(tiny_rows(3, 0), judge, target_fpr=0.1)
    with pytest.raises(MissingReference, match="at least 99 clean rows, got 98"):
        judged(tiny_rows(3, 0), judge, clean=tiny_rows(98, 1))
    assert not hasattr(judge, "seen"), "the method must not have run"


def test_clean_rows_of_another_task_are_refused(judged):
    with pytest.raises(DataError):
        judged(tiny_rows(3, 0), Judge(np.zeros(12)), clean=tiny_pairs(9, 0), target_fpr=0.1)


def test_a_method_that_judges_nothing_is_refused(judged):
    class Silent(Judge):
        def scan(self, model, data, trusted):
            yield Score()
            return Outcome(acted=Acted(samples=1))

    with pytest.raises(DefenseInert):
        judged(tiny_rows(3, 0), Silent([]))
