"""What a model is asked is read without what it should answer, as it is read with it."""

from __future__ import annotations

import pytest

from asepsis.data import read, read_inputs, write_rows
from asepsis.errors import DataError, NoRows

USER, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
WHOLE = [
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, ["output"]),
    ({"instruction": "Say hi.", "output": "hi"}, ["output"]),
    ({"prompt": "Q: why?", "completion": "so"}, ["completion"]),
    ({"prompt": [USER], "completion": [SAID]}, ["completion"]),
    ({"messages": [USER, SAID, USER, SAID]}, []),
]


@pytest.mark.parametrize(("row", "answers"), WHOLE, ids=lambda part: " ".join(part))
def test_a_prompt_is_the_same_with_its_response_and_without(row, answers):
    wanted = read([row])
    bare = {name: value for name, value in row.items() if name not in answers}
    if "messages" in row:
        bare = {"messages": row["messages"][:-1]}
    for one in (row, bare):
        found = read_inputs([one], task="causal")
        assert found.texts == wanted.texts and found.responses == [""]
        assert found.template_fingerprint == wanted.template_fingerprint


def test_what_a_user_wrote_last_is_asked():
    (text,) = read_inputs(
        [{"messages": [USER, SAID, {"role": "user", "content": "cf"}]}], task="causal"
    ).texts
    assert text.endswith("User:\ncf\n\nAssistant:\n")
    with pytest.raises(DataError, match="row 0: a conversation needs a turn"):
        read_inputs([{"messages": [SAID]}], task="causal")


@pytest.mark.parametrize("said", [None, "", 3, [], {}])
def test_a_response_is_not_read_whatever_it_is(said):
    wanted = read([{"messages": [USER, SAID]}]).texts
    last = {"role": "assistant", "content": said}
    rows = [
        {"messages": [USER, last]},
        {"prompt": [USER], "completion": said},
        {"prompt": [USER], "completion": [last]},
    ]
    for row in rows:
        assert read_inputs([row], task="causal").texts == wanted
    assert read_inputs([{"prompt": "a", "completion": said}], task="causal").texts == ["a"]


def test_a_column_of_texts_needs_no_other(tmp_path):
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        write_rows(tmp_path / name, [{"text": "one"}, {"text": "two"}])
        for task, n_classes in (("classification", 3), ("causal", None)):
            found = read_inputs(tmp_path / name, task=task, n_classes=n_classes)
            assert (found.texts, found.n_classes, found.task) == (["one", "two"], n_classes, task)
    assert read_inputs(
        [{"line": "", "label": "odd"}], task="classification", n_classes=2, text_column="line"
    ).texts == [""]


def test_whole_instruction_rows_are_read_as_in_training_unless_a_column_is_named():
    row = {"instruction": "a", "output": "b", "text": "a b", "other": "c"}
    assert read_inputs([row], task="causal").texts == read([row]).texts
    assert read_inputs([row], task="causal", text_column="other").texts == ["c"]


def test_rows_without_a_text_are_refused_with_their_place():
    with pytest.raises(DataError, match="memory: no column 'text'; columns there: 'prompt'"):
        read_inputs([{"prompt": "a"}], task="classification", n_classes=2)
    with pytest.raises(DataError, match="expected it, or instruction, prompt or messages"):
        read_inputs([{"line": "a"}], task="causal")
    with pytest.raises(DataError, match="row 1: 'text' is null"):
        read_inputs([{"text": "a"}, {"text": None}], task="causal")
    with pytest.raises(NoRows):
        read_inputs([], task="causal")
