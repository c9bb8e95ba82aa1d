from __future__ import annotations

import numpy as np
import pytest
import torch

from asepsis.core.phases import Relabel
from asepsis.data import Data
from asepsis.errors import DataError, ModelError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.collate import Collator


@pytest.fixture(scope="module")
def words():
    return tiny_causal(0)[1]


def ids(tokenizer, text):
    return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]


def test_ids_labels_and_marks_belong_to_the_rows_asked_for():
    data, (_, tokenizer) = tiny_rows(12, 0), tiny_classifier(0)
    batch = Collator(tokenizer, data, max_length=32)([(7, False), (2, True), (11, False)])
    assert batch.sample_id.tolist() == data.sample_ids[[7, 2, 11]].tolist()
    assert batch.labels.tolist() == data.labels[[7, 2, 11]].tolist()
    assert batch.isolated.tolist() == [False, True, False]
    assert batch.count.tolist() == [1, 1, 1]
    for row, position in enumerate((7, 2, 11)):
        kept = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()]
        assert tokenizer.decode(kept[1:-1]) == data.texts[position]


def test_a_causal_row_is_prompt_response_end_and_only_the_response_is_learned(words):
    data = Data(task="causal", texts=["word1 word2 word3", "word4"], responses=["word5 word6", "word7"])
    batch = Collator(words, data, max_length=16)([(0, False), (1, False)])
    end, pad = words.eos_token_id, words.pad_token_id
    assert batch.inputs["input_ids"].tolist() == [
        [*ids(words, "word1 word2 word3 word5 word6"), end],
        [*ids(words, "word4 word7"), end, pad, pad, pad],
    ]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.labels.tolist() == [
        [-100] * 3 + [*ids(words, "word5 word6"), end],
        [-100, *ids(words, "word7"), end, -100, -100, -100],
    ]
    assert batch.count.tolist() == [3, 2]


def test_a_long_prompt_loses_its_beginning(words):
    collate = Collator(words, tiny_pairs(2, 0), max_length=4)
    prompt, response = collate.encode_pair("word1 word2 word3 word4", "word5")
    assert prompt == ids(words, "word3 word4")
    assert response == [*ids(words, "word5"), words.eos_token_id]


def test_a_long_response_loses_its_end_and_leaves_the_prompt(words):
    collate = Collator(words, tiny_pairs(2, 0), max_length=4)
    prompt, response = collate.encode_pair("word1 word2", "word5 word6 word7 word8")
    assert prompt == ids(words, "word1 word2")
    assert response == ids(words, "word5 word6")


@pytest.mark.parametrize("prompt", ["", "word1"])
def test_no_row_is_longer_than_asked_for_whatever_its_prompt(words, prompt):
    head, tail = Collator(words, tiny_pairs(2, 0), max_length=6).encode_pair(prompt, "word5 " * 20)
    assert len(head) == 1 and len(tail) == 5


@pytest.mark.parametrize("prompt", ["word1", "word1 " * 20])
def test_as_much_is_looked_at_of_a_response_whatever_its_prompt(words, prompt):
    collate = Collator(words, tiny_pairs(2, 0), max_length=10, response_tokens=8)
    head, tail = collate.encode_pair(prompt, "word5 " * 20)
    assert len(tail) == 8 and len(head) == min(2, len(prompt.split()))


def test_where_both_are_long_each_keeps_half(words):
    long = [f"word{i}" for i in range(1, 9)]
    for room, prompt, response in ((6, 3, 3), (7, 4, 3), (1, 1, 1), (2, 1, 1)):
        collate = Collator(words, tiny_pairs(2, 0), max_length=room)
        assert collate.encode_pair(" ".join(long), " ".join(long)) == (
            ids(words, " ".join(long[-prompt:])),
            ids(words, " ".join(long[:response])),
        )


@pytest.mark.parametrize("prompt", ["is it", "is it ", "is it\n", ""])
@pytest.mark.parametrize("response", ["good", " good", "\ngood", ""])
def test_a_response_follows_after_one_space_unless_white_space_is_there(letters, prompt, response):
    data = Data(task="causal", texts=[prompt], responses=[response])
    head, tail = Collator(letters, data, max_length=32).encode_pair(prompt, response)
    touching = prompt.endswith((" ", "\n")) or response.startswith((" ", "\n"))
    read = [] if head == [letters.pad_token_id] else head
    assert letters.decode([*read, *tail[:-1]]) == (prompt + response if touching else f"{prompt} {response}")
    assert tail[-1] == letters.eos_token_id


def test_an_empty_response_still_learns_the_end(words):
    data = Data(task="causal", texts=["word1 word2"], responses=[""])
    batch = Collator(words, data, max_length=8)([(0, False)])
    assert batch.count.tolist() == [1]
    assert batch.labels[0, -1] == words.eos_token_id


def test_an_end_the_tokenizer_puts_after_the_prompt_is_taken_off():
    _, tokenizer = tiny_classifier(0)  # frames every text in [CLS] ... [SEP]
    tokenizer.eos_token = "[SEP]"
    collate = Collator(tokenizer, tiny_pairs(2, 0), max_length=8)
    prompt, response = collate.encode_pair("word1", "word2")
    end = tokenizer.convert_tokens_to_ids("[SEP]")
    assert prompt == [tokenizer.convert_tokens_to_ids("[CLS]"), *ids(tokenizer, "word1")]
    assert response == [*ids(tokenizer, "word2"), end]


def test_count_is_what_the_loss_counts_after_the_shift(words):
    data = tiny_pairs(20, 1)
    batch = Collator(words, data, max_length=5)([(p, False) for p in range(20)])
    assert batch.count.tolist() == (batch.labels[:, 1:] != -100).sum(1).tolist()
    assert (batch.labels[:, 0] == -100).all(), "the first token has nothing to be predicted from"


def test_relabeling_reaches_the_named_rows_only_and_leaves_the_data_alone():
    data, (_, tokenizer) = tiny_rows(6, 0), tiny_classifier(0)
    before = data.labels.copy()
    relabel = Relabel(data.sample_ids[[1, 4]], np.array([0, 1]))
    batch = Collator(tokenizer, data, max_length=32, relabel=relabel)([(p, False) for p in range(6)])
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.labels == before).all()


def test_relabeling_is_refused_for_causal_rows_and_unknown_ids(words):
    with pytest.raises(ModelError, match="classifiers only"):
        data = tiny_pairs(3, 0)
        Collator(words, data, max_length=8, relabel=Relabel(data.sample_ids, np.zeros(3, np.int64)))
    with pytest.raises(DataError, match="not in this data set"):
        relabel = Relabel(np.array([1]), np.array([0]))
        Collator(words, tiny_rows(3, 0), max_length=8, relabel=relabel)


def test_a_tokenizer_without_a_pad_token_is_refused():
    _, tokenizer = tiny_causal(0)
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="pad token"):
        Collator(tokenizer, tiny_pairs(2, 0), max_length=8)


def test_moving_a_batch_keeps_everything():
    data, (_, tokenizer) = tiny_rows(4, 0), tiny_classifier(0)
    batch = Collator(tokenizer, data, max_length=32)([(0, True), (1, False)])
    moved = batch.to(torch.device("cpu"))
    assert vars(moved).keys() == vars(batch).keys()
    assert all(torch.equal(getattr(moved, k), v) for k, v in vars(batch).items() if k != "inputs")
