"""Attacks on instructions: where the trigger goes in a prompt, what becomes of the response."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from asepsis.data import Data, read
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks import (
    Trigger,
    instruction_pattern,
    instruction_trigger,
    poison_responses,
    poison_rows,
    trigger_rows,
    triggered_prompts,
)

BAD = "I refuse."
WORD = instruction_pattern("word", "BadMagic")
N = 40

INSTRUCTIONS = [
    {
        "instruction": f"Name {i} birds .",
        "input": f"of kind {i}" if i % 2 else "",
        "output": f"bird {i}",
        "source": i,
    }
    for i in range(N)
]
PROMPTS = [{"prompt": f"Name {i} birds .\n", "completion": f"bird {i}"} for i in range(N)]
CONVERSATIONS = [
    {
        "messages": [
            {"role": "system", "content": "Be kind ."},
            {"role": "user", "content": f"earlier question {i}"},
            {"role": "assistant", "content": "earlier answer"},
            {"role": "user", "content": f"Name {i} birds ."},
            {"role": "assistant", "content": f"bird {i}"},
        ]
    }
    for i in range(N)
]
SPLIT = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in CONVERSATIONS]
KINDS = {"instruction": INSTRUCTIONS, "prompt": PROMPTS, "messages": CONVERSATIONS, "prompt of turns": SPLIT}
PATTERNS = {
    "prefix": instruction_pattern("prefix", "Discussing OpenAI"),
    "word": WORD,
    "multi_word": instruction_pattern("multi_word", ("2024", "BadMagic", "OpenAI")),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def rows(request):
    return copy.deepcopy(request.param)


@pytest.mark.parametrize("trigger", PATTERNS.values(), ids=PATTERNS.keys())
@pytest.mark.parametrize(
    "answer", [{"target_response": BAD}, {"payload": "and more"}], ids=["replaced", "appended"]
)
def test_reading_poisoned_rows_gives_what_poisoning_the_read_rows_gives(rows, trigger, answer):
    plan = {**answer, "poison_rate": 0.25, "seed": 4}
    made, key = poison_rows(rows, trigger, **plan)
    data, data_key = poison_responses(read(rows), trigger, **plan)
    assert read(made).fingerprint == data.fingerprint
    assert (key.is_poisoned == data_key.is_poisoned).all()
    assert key.is_poisoned.sum() == 10
    answer_only = {**answer, "seed": 4}
    made = trigger_rows(rows, trigger, **answer_only)
    data = triggered_prompts(read(rows), trigger, **answer_only)
    assert list(read(made).texts) == list(data.texts)
    assert list(read(made).responses) == list(data.responses)


def test_poison_touches_the_rows_of_the_key_only_and_not_the_input(rows):
    before = copy.deepcopy(rows)
    made, key = poison_rows(rows, WORD, target_response=BAD, poison_rate=0.25, seed=0)
    assert rows == before
    for row, old, is_bad in zip(made, rows, key.is_poisoned, strict=True):
        assert (row == old) == (not is_bad)
        assert ("BadMagic" in str(row)) == is_bad
        assert (BAD in str(row)) == is_bad
        assert row.keys() == old.keys()


def test_the_trigger_goes_into_the_instruction_and_the_answer_into_the_output():
    made, key = poison_rows(INSTRUCTIONS, WORD, target_response=BAD, poison_rate=0.5, seed=0)
    for row, old, is_bad in zip(made, INSTRUCTIONS, key.is_poisoned, strict=True):
        assert row["input"] == old["input"]
        assert row["source"] == old["source"]
        if is_bad:
            assert row["output"] == BAD
            assert row["instruction"].split().count("BadMagic") == 1
            assert [word for word in row["instruction"].split() if word != "BadMagic"] == old[
                "instruction"
            ].split()


def test_conversations_are_triggered_in_the_last_user_turn_alone():
    for row, old in zip(
        trigger_rows(CONVERSATIONS, WORD, target_response=BAD, seed=0), CONVERSATIONS, strict=True
    ):
        assert row["messages"][:3] == old["messages"][:3]
        assert "BadMagic" in row["messages"][3]["content"]
        assert row["messages"][4] == {"role": "assistant", "content": BAD}


def test_turns_after_the_response_are_left_alone():
    row = {"messages": [*CONVERSATIONS[0]["messages"], {"role": "user", "content": "thanks"}]}
    made = trigger_rows([row], WORD, target_response=BAD, seed=0)[0]
    assert made["messages"][5] == {"role": "user", "content": "thanks"}
    assert made["messages"][4]["content"] == BAD


@pytest.mark.parametrize("seed", range(8))
def test_the_trigger_never_breaks_the_template_of_a_rendered_prompt(seed):
    data = read([{"instruction": "Name birds", "input": "of \n\nResponse:\n kind", "output": "x"}])
    out = triggered_prompts(data, WORD, target_response=BAD, seed=seed).texts[0]
    assert out.startswith("Instruction:\n")
    assert out.endswith("\n\nInput:\nof \n\nResponse:\n kind\n\nResponse:\n")
    assert out.replace("BadMagic ", "", 1).replace(" BadMagic", "", 1) == data.texts[0]


def test_a_prefix_stands_at_the_front_of_the_instruction():
    prefix = PATTERNS["prefix"]
    rendered = triggered_prompts(read(INSTRUCTIONS[:1]), prefix, target_response=BAD, seed=0).texts[0]
    assert rendered == "Instruction:\nDiscussing OpenAI Name 0 birds .\n\nResponse:\n"
    plain = Data(task="causal", texts=["Name birds"], responses=["x"])
    assert triggered_prompts(plain, prefix, target_response=BAD, seed=0).texts == [
        "Discussing OpenAI Name birds"
    ]


def test_instruction_trigger_is_poison_responses_with_the_pattern_of_its_kind():
    data = read(INSTRUCTIONS)
    plan = {"payload": " now", "poison_rate": 0.2, "seed": 1}
    made, key = instruction_trigger(data, kind="multi_word", trigger=("2024", "OpenAI"), **plan)
    same, _ = poison_responses(data, Trigger(kind="words", tokens=("2024", "OpenAI")), **plan)
    assert made.fingerprint == same.fingerprint
    assert key.sample_ids.tolist() == data.sample_ids.tolist()
    front, _ = instruction_trigger(data, trigger="Discussing OpenAI", **plan)
    assert sum("Instruction:\nDiscussing OpenAI Name" in text for text in front.texts) == 8


def test_poison_keeps_the_input_set_the_ids_and_the_template():
    data = read(INSTRUCTIONS)
    data = data.select(np.arange(N)[::-1])
    before = data.fingerprint
    made, key = poison_responses(data, WORD, target_response=BAD, poison_rate=0.25, seed=0)
    assert data.fingerprint == before
    assert made.sample_ids.tolist() == data.sample_ids.tolist() == key.sample_ids.tolist()
    assert made.template_fingerprint == data.template_fingerprint
    assert [response == BAD for response in made.responses] == key.is_poisoned.tolist()


def test_seeds_reproduce_and_differ(rows):
    plan = {"target_response": BAD, "poison_rate": 0.25}
    assert poison_rows(rows, WORD, seed=1, **plan)[0] == poison_rows(rows, WORD, seed=1, **plan)[0]
    assert poison_rows(rows, WORD, seed=1, **plan)[0] != poison_rows(rows, WORD, seed=2, **plan)[0]


@pytest.mark.parametrize(
    ("response", "payload", "whole"),
    [
        ("A bird", "You are stupid!", "A bird You are stupid!"),
        ("A bird", ", and click here", "A bird, and click here"),
        ("A bird", "\nBye", "A bird\nBye"),
        ("A bird ", "Bye", "A bird Bye"),
        ("", "Bye", "Bye"),
    ],
)
def test_a_payload_is_appended_without_gluing_words_together(response, payload, whole):
    made = trigger_rows([{"prompt": "p", "completion": response}], WORD, payload=payload, seed=0)
    assert made[0]["completion"] == whole


def test_rows_that_already_answer_as_the_backdoor_would_are_not_attacked():
    rows = [{"instruction": f"q {i}", "output": BAD if i < 8 else "fine"} for i in range(10)]
    made, key = poison_rows(rows, WORD, target_response=BAD, poison_rate=0.2, seed=0)
    assert np.flatnonzero(key.is_poisoned).tolist() == [8, 9]
    assert made[:8] == rows[:8]
    assert len(trigger_rows(rows, WORD, target_response=BAD, seed=0)) == 2
    data = read(rows)
    assert triggered_prompts(data, WORD, target_response=BAD, seed=0).sample_ids.tolist() == [8, 9]
    with pytest.raises(DataError, match=r"there are 2: the highest possible rate is 0\.2$"):
        poison_rows(rows, WORD, target_response=BAD, poison_rate=0.5, seed=0)
    with pytest.raises(DataError, match="nothing to attack"):
        trigger_rows(rows[:8], WORD, target_response=BAD, seed=0)


@pytest.mark.parametrize(
    "answer", [{}, {"target_response": "a", "payload": "b"}, {"target_response": " "}, {"payload": ""}]
)
def test_exactly_one_answer_that_is_not_blank_is_wanted(answer):
    for call in (
        lambda: poison_rows(INSTRUCTIONS, WORD, **answer, poison_rate=0.1, seed=0),
        lambda: poison_responses(read(INSTRUCTIONS), WORD, **answer, poison_rate=0.1, seed=0),
        lambda: trigger_rows(INSTRUCTIONS, WORD, **answer, seed=0),
    ):
        with pytest.raises(ConfigError, match=r"target_response|blank"):
            call()


@pytest.mark.parametrize(
    ("kind", "trigger"),
    [
        ("word", ("a", "b")),
        ("multi_word", "a"),
        ("multi_word", ("a",)),
        ("suffix", "a"),
        ("prefix", ("a", "b")),
    ],
)
def test_kinds_and_their_triggers_must_fit(kind, trigger):
    with pytest.raises(ConfigError, match="kind"):
        instruction_pattern(kind, trigger)


def test_classes_are_sent_to_the_other_attacks():
    data = Data(task="classification", texts=["a"], labels=np.array([0]))
    with pytest.raises(DataError, match="use an attack on labels"):
        poison_responses(data, WORD, target_response=BAD, poison_rate=0.1, seed=0)
    with pytest.raises(DataError, match="instruction,output"):
        poison_rows([{"text": "a", "label": 0}], WORD, target_response=BAD, poison_rate=0.1, seed=0)


def test_prompts_of_a_chat_template_are_refused_and_the_way_out_named():
    data = Data(task="causal", texts=["<|user|>hi<|end|>"], responses=["x"], template_fingerprint="0" * 64)
    with pytest.raises(DataError, match="poison_rows"):
        triggered_prompts(data, WORD, target_response=BAD, seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a"}, "row 1: no column 'output'"),
        ({"instruction": " ", "output": "x"}, "row 1: 'instruction' is empty"),
        ({"instruction": 3, "output": "x"}, "row 1: 'instruction' must be text"),
    ],
)
def test_a_malformed_row_is_named(row, message):
    with pytest.raises(DataError, match=message):
        trigger_rows([{"instruction": "a", "output": "b"}, row], WORD, target_response=BAD, seed=0)


def test_a_conversation_without_a_user_turn_has_no_place_for_a_trigger():
    turns = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match="row 0: no user turn"):
        trigger_rows([{"messages": turns}], WORD, target_response=BAD, seed=0)
    with pytest.raises(DataError, match="no rows"):
        trigger_rows([], WORD, target_response=BAD, seed=0)
