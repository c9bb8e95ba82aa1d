from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from asepsis.core.phases import Acted, Outcome
from asepsis.data import Data
from asepsis.defenses.abl import AblConfig
from asepsis.evaluation import harness
from asepsis.evaluation.attacks import BADNETS, poison_labels, triggered_test
from asepsis.evaluation.harness import Case, detection, run_case
from asepsis.evaluation.key import PoisonKey
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training import Settings

SETTINGS = Settings(max_steps=3, batch_size=8, device="cpu", precision="fp32", max_length=32)
ABL = AblConfig(snapshots=(2, 4), grow_steps=2)


def case_of_tiny_rows():
    train, key = poison_labels(tiny_rows(48, 0), BADNETS, poison_rate=0.25, target_label=1, seed=0)
    test = tiny_rows(12, 1)
    return Case(train, key, test, triggered_test(test, BADNETS, target_label=1, seed=0), 1)


CASE = case_of_tiny_rows()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model, tokenizer = tiny_classifier(0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def table(folder):
    """Rows of one experiment, with what each training was given."""
    given = []

    def watched(real):
        def train(model, data, *arguments, **options):
            given.append((data, arguments, options))
            return real(model, data, *arguments, **options)

        return train

    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "defend", watched(harness.defend))
        patch.setattr(harness, "run_script", watched(harness.run_script))
        rows = run_case(CASE, [ABL], model=folder, settings=SETTINGS, on_row=told.append)
    return rows, told, given


def test_the_controls_run_first_and_rows_are_told_as_they_come(table):
    rows, told, _ = table
    assert [row.defense for row in rows] == ["none", "clean-only", "abl"]
    assert told == rows


def test_every_training_gets_the_poisoned_rows_and_nothing_that_holds_the_key(table):
    _, _, given = table
    assert len(given) == 3
    columns = {"task", "texts", "labels", "responses", "sample_ids", "n_classes", "source"}
    assert {field.name for field in dataclasses.fields(Data)} == columns | {"template_fingerprint"}
    for data, arguments, options in given:
        assert data is CASE.train
        passed = [*arguments, *options.values()]
        assert not any(isinstance(value, (PoisonKey, Case)) for value in passed)
    assert "key" not in given[2][2] and set(given[2][2]) == {"defense", "settings", "progress"}


def test_clean_only_trains_on_every_row_but_the_poisoned_ones(table):
    clean_only = table[0][1]
    assert clean_only.run.outcome.acted.samples == 36
    assert clean_only.run.manifest["defense"]["name"] == "clean-only"


def test_accuracy_and_success_are_measured_on_their_own_rows_for_every_training(table):
    for row in table[0]:
        assert row.measured.clean_accuracy.n == 12
        assert row.measured.attack_success_rate.n == 6
        assert row.measured.target_label == 1
        assert row.seconds > 0


def test_controls_have_no_detection_and_a_defense_has_all_fields(table):
    none, clean_only, abl = table[0]
    assert none.detection == clean_only.detection == {}
    assert set(abl.detection) == {
        "auroc",
        "tpr_at_1_fpr",
        "precision_at_1_percent",
        "flagged",
        "flagged_precision",
        "flagged_recall",
        "flagged_fpr",
        "isolated_precision",
    }
    flat = json.loads(json.dumps(abl.to_dict(), allow_nan=False))
    assert flat["defense"] == "abl" and flat["clean_accuracy"]["n"] == 12
    assert set(abl.detection) < set(flat) and "target_label" not in flat


def test_without_the_floor_only_the_undefended_control_runs(folder):
    rows = run_case(CASE, [], model=folder, settings=SETTINGS, floor=False)
    assert [row.defense for row in rows] == ["none"]


def outcome_of(suspicion, flagged, isolated):
    return Outcome(
        acted=Acted(samples=48, steps=1),
        suspicion=None if suspicion is None else suspicion.astype(np.float32),
        flagged=np.array(flagged, np.int64),
        isolated=np.array(isolated, np.int64),
        report={},
    )


def test_detection_of_a_perfect_outcome_is_perfect():
    poisoned = CASE.train.sample_ids[CASE.key.is_poisoned]
    got = detection(outcome_of(CASE.key.is_poisoned * 1.0, poisoned, poisoned[:2]), CASE.train, CASE.key)
    assert got.pop("flagged") == 12.0 and got.pop("flagged_fpr") == 0.0
    assert set(got.values()) == {1.0}


def test_detection_looks_up_rows_by_id_and_not_by_position():
    poisoned = CASE.train.sample_ids[CASE.key.is_poisoned]
    clean = CASE.train.sample_ids[~CASE.key.is_poisoned]
    got = detection(
        outcome_of(1.0 - CASE.key.is_poisoned, [poisoned[0], clean[0]], [clean[0], clean[1]]),
        CASE.train,
        CASE.key,
    )
    assert got["auroc"] == 0.0 and got["precision_at_1_percent"] == 0.0
    assert got["flagged_precision"] == 0.5 and got["flagged_recall"] == pytest.approx(1 / 12)
    assert got["isolated_precision"] == 0.0


def test_nothing_isolated_has_no_precision():
    got = detection(outcome_of(np.zeros(48), [], []), CASE.train, CASE.key)
    assert got["isolated_precision"] is None and got["flagged_precision"] is None
    assert got["flagged"] == 0.0
    assert detection(outcome_of(None, [], []), CASE.train, CASE.key) == {}
