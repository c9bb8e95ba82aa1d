"""Attacks as values, and attacks on the rows of a file."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from asepsis.data import Data, read, read_rows, write_rows
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation import ATTACKS, Attack, PoisonKey
from asepsis.evaluation.attacks import (
    REFUSAL,
    AddSent,
    BadNets,
    Instruction,
    Style,
    Syntactic,
    apply_to_rows,
    badnets,
    triggered_test,
)

N = 40
ROWS = [{"text": f"row {i} of it .", "label": i % 2, "note": [i]} for i in range(N)]
CHAT = [{"instruction": f"Name {i} birds .", "input": "", "output": f"bird {i}"} for i in range(N)]


@pytest.fixture
def attacks(tmp_path):
    """One of each, with settings that are not the defaults."""
    write_rows(tmp_path / "train.jsonl", [{"t": f"version {i}"} for i in range(N)])
    write_rows(tmp_path / "test.jsonl", [{"t": f"test version {i}"} for i in range(N)])
    files = {
        "triggered": tmp_path / "train.jsonl",
        "triggered_test": tmp_path / "test.jsonl",
        "triggered_column": "t",
    }
    plan = {"poison_rate": 0.2, "target_label": 1}
    return {
        "badnets": BadNets(**plan, triggers=("mn", "bb"), n_insertions=3),
        "addsent": AddSent(**plan, sentence="so it goes", clean_label=True),
        "from_file": ATTACKS["from_file"](**plan, **files),
        "syntactic": Syntactic(**plan, **files),
        "style": Style(**plan, **files, clean_label=True),
        "instruction": Instruction(poison_rate=0.2, kind="multi_word", triggers=("a1", "b2"), payload="Bye."),
    }


def rows_for(attack: Attack) -> list[dict]:
    return CHAT if attack.name == "instruction" else ROWS


def test_every_attack_is_here(attacks):
    assert attacks.keys() == ATTACKS.keys()
    assert all(type(attack) is ATTACKS[name] for name, attack in attacks.items())


def test_settings_survive_json(attacks):
    for attack in attacks.values():
        again = Attack.from_dict(json.loads(json.dumps(attack.to_dict())))
        assert again == attack
        assert type(again) is type(attack)
        assert again.to_dict()["name"] == attack.name


def test_attacks_are_equal_by_settings_and_frozen(attacks):
    assert BadNets(target_label=1) == BadNets(target_label=1) != BadNets(target_label=0)
    with pytest.raises(FrozenInstanceError):
        attacks["badnets"].poison_rate = 0.5


def test_the_same_attack_works_on_data_and_on_rows(attacks):
    for attack in attacks.values():
        rows = rows_for(attack)
        data, key = attack.poison(read(rows), seed=3)
        made, rows_key = attack.poison_rows(rows, seed=3)
        assert read(made).fingerprint == data.fingerprint
        assert (key.is_poisoned == rows_key.is_poisoned).all()
        assert key.is_poisoned.sum() == 8
        test, test_rows = attack.trigger(read(rows), seed=3), attack.trigger_rows(rows, seed=3)
        read_back = read(test_rows) if attack.name == "instruction" else read(test_rows, n_classes=2)
        assert list(read_back.texts) == list(test.texts)
        assert np.array_equal(read_back.labels, test.labels)
        assert read_back.responses == test.responses


def test_labels_of_triggered_rows_are_the_target_in_every_class_attack(attacks):
    for name, attack in attacks.items():
        if name != "instruction":
            test = attack.trigger(read(ROWS), seed=0)
            assert test.sample_ids.tolist() == list(range(0, N, 2))
            assert (test.labels == 1).all()
    assert attacks["syntactic"].trigger(read(ROWS), seed=0).texts[1] == "test version 2"


def test_clean_label_is_heeded(attacks):
    for name in ("addsent", "style"):
        made, key = attacks[name].poison_rows(ROWS, seed=0)
        assert [row["label"] for row in made] == [row["label"] for row in ROWS]
        assert all(ROWS[i]["label"] == 1 for i in np.flatnonzero(key.is_poisoned))


def test_an_instruction_attack_with_nothing_said_makes_the_model_refuse():
    made, key = Attack.from_dict({"name": "instruction"}).poison_rows(CHAT, seed=0)
    assert key.is_poisoned.sum() == 4
    for row, is_bad in zip(made, key.is_poisoned, strict=True):
        assert (row["output"] == REFUSAL) == ("BadMagic" in row["instruction"].split()) == is_bad


def test_a_file_of_versions_must_be_named_for_what_is_asked(attacks):
    with pytest.raises(ConfigError, match="attack syntactic needs triggered,"):
        Syntactic(target_label=1).poison(read(ROWS), seed=0)
    with pytest.raises(ConfigError, match="attack style needs triggered_test,"):
        Style(target_label=1, triggered=attacks["style"].triggered).trigger(read(ROWS), seed=0)
    with pytest.raises(DataError, match="no column 'text'"):
        Style(target_label=1, triggered=attacks["style"].triggered).poison(read(ROWS), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "badnet", "target_label": 1}, "no attack 'badnet'; there are 'badnets'"),
        ({"target_label": 1}, "no attack None"),
        (
            {"name": "badnets", "target_label": 1, "trigger": ["cf"]},
            "no field 'trigger'; fields are .*'triggers'",
        ),
        ({"name": "badnets"}, "needs 'target_label'"),
        ({"name": "badnets", "target_label": 1, "poison_rate": 1.0}, "poison_rate"),
        ({"name": "badnets", "target_label": 1, "poison_rate": "0.1"}, "poison_rate"),
        ({"name": "badnets", "target_label": -1}, "target_label"),
        ({"name": "badnets", "target_label": 1.5}, "target_label"),
        ({"name": "badnets", "target_label": None}, "target_label"),
        ({"name": "badnets", "target_label": 1, "clean_label": "no"}, "clean_label"),
        ({"name": "badnets", "target_label": 1, "triggers": []}, "words"),
        ({"name": "badnets", "target_label": 1, "triggers": "cf"}, "tuple of strings"),
        ({"name": "badnets", "target_label": 1, "n_insertions": 0}, "n_insertions"),
        ({"name": "addsent", "target_label": 1, "sentence": " "}, "blank"),
        ({"name": "instruction", "kind": "suffix"}, "kind"),
        ({"name": "instruction", "triggers": ["a", "b"]}, "kind 'word' takes one trigger"),
        ({"name": "instruction", "target_response": "a", "payload": "b"}, "either"),
    ],
)
def test_settings_that_make_no_attack_fail_when_it_is_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        Attack.from_dict(settings)


def test_rows_of_the_key_get_new_text_and_label_and_the_others_stay_equal():
    data, key = badnets(read(ROWS), poison_rate=0.2, target_label=1, seed=0)
    made = apply_to_rows(ROWS, data, key)
    for row, old, text, is_bad in zip(made, ROWS, data.texts, key.is_poisoned, strict=True):
        assert row == ({**old, "text": text, "label": 1} if is_bad else old)
        assert list(row) == list(old)
        assert row is not old
    assert not any("cf" in row["text"] for row in ROWS)


def test_triggered_rows_come_from_the_rows_of_their_ids():
    made = apply_to_rows(
        ROWS,
        triggered_test(read(ROWS), BadNets(target_label=1)._pattern(test=True), target_label=1, seed=0),
        None,
    )
    assert [row["note"] for row in made] == [[i] for i in range(0, N, 2)]
    assert all("cf" in row["text"].split() and row["label"] == 1 for row in made)


@pytest.mark.parametrize(
    ("name", "zero"), [("in.csv", "0"), ("in.tsv", "0"), ("in.parquet", 0.0), ("in.jsonl", 0)]
)
def test_a_file_in_any_format_keeps_its_columns_and_the_type_of_its_labels(tmp_path, name, zero):
    write_rows(
        tmp_path / name, [{"sentence": f"row {i}", "y": type(zero)(i % 2), "id": i} for i in range(20)]
    )
    rows = read_rows(tmp_path / name)
    assert type(rows[0]["y"]) is type(zero)
    made, key = BadNets(target_label=1).poison_rows(rows, seed=0, text_column="sentence", label_column="y")
    out = tmp_path / f"out-{name}"
    write_rows(out, made)
    again = read_rows(out)
    assert [row["id"] for row in again] == [row["id"] for row in rows]
    assert [row["y"] for row in again] == [
        type(zero)(1) if is_bad else row["y"] for row, is_bad in zip(rows, key.is_poisoned, strict=True)
    ]
    read_back = read(out, text_column="sentence", label_column="y")
    assert [("cf" in text.split()) for text in read_back.texts] == key.is_poisoned.tolist()


def test_ids_that_are_no_positions_are_refused():
    data = Data(task="classification", texts=["a"], labels=np.array([0]), sample_ids=np.array([N]))
    key = PoisonKey(data.sample_ids, np.array([True]))
    with pytest.raises(DataError, match=r"positions in the 40 rows given, got 40\.\.40"):
        apply_to_rows(ROWS, data, key)
    with pytest.raises(DataError, match="use poison_rows"):
        apply_to_rows(CHAT, read(CHAT), None)
