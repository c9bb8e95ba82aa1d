"""What a guard reads of an input has an end; a guard says which inputs go on beyond it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from asepsis import Guard
from asepsis.cli import main
from asepsis.data import Data, write_rows
from asepsis.inference.detectors import load
from asepsis.inference.lengths import token_counts
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows

READ = 16
FILLED = [" ".join(["word1"] * n) for n in range(8, 24)]


def prompts(texts, responses=None):
    return Data(task="causal", texts=texts, responses=responses or [""] * len(texts))


@pytest.fixture(scope="module")
def short(victim):
    return Guard.fit(str(victim.folder), victim.clean(99, 3), detector="confidence", max_length=READ)


def test_a_check_counts_what_it_reads_in_part_and_says_so_at_every_call(short, victim, caplog):
    rows = replace(victim.clean(3, 5), texts=["word1", f"{FILLED[-1]} {TRIGGER}", FILLED[-1]])
    with caplog.at_level(logging.WARNING, "asepsis"):
        found, _ = short.check(rows), short.check(rows)
    assert found.cut == 2 == found.to_dict()["cut"]
    assert found.suspicion[1] == found.suspicion[2], "the trigger is not read"
    assert (
        caplog.text.count(
            "2 of 3 inputs (66.7 %) are longer than what the guard reads, and their end is unseen"
        )
        == 2
    )
    caplog.clear()
    assert short.check(victim.clean(9, 5)).cut == 0 and not caplog.text


def test_a_wrapped_pipeline_says_so_once_and_marks_each_answer(short, caplog):
    wrapped = short.at(0.01).wrap(lambda texts: texts)
    with caplog.at_level(logging.WARNING, "asepsis"):
        assert not wrapped("word1").cut and not caplog.text
        answers = [wrapped(["word1", FILLED[-1]]) for _ in range(3)]
    assert [[answer.cut for answer in some] for some in answers] == [[False, True]] * 3
    assert caplog.text.count("longer than what the guard reads") == 1


def test_a_fit_says_which_share_of_the_clean_rows_is_cut(victim, caplog):
    rows = victim.clean(100, 3)
    long = replace(rows, texts=[*rows.texts[:75], *(f"{text} {FILLED[-1]}" for text in rows.texts[75:])])
    with caplog.at_level(logging.WARNING, "asepsis"):
        Guard.fit(str(victim.folder), long, detector="confidence", max_length=READ)
    assert "25 of 100 clean rows (25.0 %) are longer" in caplog.text and "a larger max_length" in caplog.text


def test_guard_check_prints_and_writes_it(short, tmp_path, capsys):
    folder = short.save_pretrained(tmp_path / "guard")
    write_rows(tmp_path / "a.jsonl", [{"text": "word1"}, {"text": FILLED[-1]}])
    words = ["guard", "check", str(folder), str(tmp_path / "a.jsonl"), "--json", str(tmp_path / "found.json")]
    assert main([*words, "--fail-on", "never"]) == 0
    said = capsys.readouterr()
    assert "read in part only: 1 of 2 rows" in said.out and "is unseen" in said.err
    assert json.loads((tmp_path / "found.json").read_text())["cut"] == 1


@pytest.mark.parametrize("answers", [["word3", "word4"], None], ids=["verbalizers", "free"])
@pytest.mark.parametrize("end", ["", "\n"], ids=["word", "break"])
def test_a_prompt_is_cut_exactly_where_its_first_word_is_not_read(answers, end):
    model, tokenizer = tiny_causal(0)
    clean = tiny_pairs(40, 0)
    if answers:
        clean = prompts(clean.texts, answers * 20)
    made = load("confidence").fit(model.eval(), tokenizer, clean, max_length=READ)
    texts = [text + end for text in FILLED]
    other = [text.replace("word1", "word2", 1) for text in texts]
    unread = made.scores(prompts(texts)) == made.scores(prompts(other))
    cut = made.cut(prompts(texts))
    assert cut.tolist() == unread.tolist() and 0 < cut.sum() < len(cut)


@pytest.mark.parametrize(
    ("name", "options", "taken"), [("confidence", {}, 2), ("strip", {}, 2), ("rap", {"vectors": {}}, 3)]
)
def test_a_classifiers_text_is_cut_where_special_tokens_leave_no_room(name, options, taken):
    model, tokenizer = tiny_classifier(0)
    kind, rows = load(name), Data(task="classification", texts=FILLED, labels=np.zeros(len(FILLED), int))
    if options:
        made = kind(model, tokenizer, max_length=READ, **options)
    else:
        made = kind.fit(model, tokenizer, tiny_rows(40, 0), max_length=READ)
    words = np.array([len(text.split()) for text in FILLED])
    assert made.cut(rows).tolist() == (words + taken > READ).tolist()


@pytest.mark.parametrize("labels", [(), ("word3", "word4 word5")])
def test_strip_says_which_prompts_it_reads_in_part(labels):
    model, tokenizer = tiny_causal(0)
    kind = load("strip")
    config = kind.config_type(label_words=labels)
    made = kind(model, tokenizer, task="causal", donors=[["word2"]], config=config, max_length=READ)
    room = READ - (1 if labels else 0)  # the longest answer has two tokens, and the last is not read
    words = np.array([len(text.split()) for text in FILLED])
    assert made.cut(prompts(FILLED)).tolist() == (words > room).tolist()


def test_the_end_token_of_a_prompt_is_none_of_its_own():
    _, tokenizer = tiny_causal(0)
    text = f"word1 {tokenizer.eos_token}"
    assert token_counts(tokenizer, [text, "word1"]).tolist() == [2, 1]
    assert token_counts(tokenizer, [text, "word1"], prompts=True).tolist() == [1, 1]
