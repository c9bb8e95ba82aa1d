from __future__ import annotations

import json

import numpy as np
import pytest

from asepsis.core.weights import Vocabulary, row_map
from asepsis.core.weights.vocabulary import _letters
from asepsis.errors import ModelError


def vocabulary(tokens, *, special=(), style="wordpiece"):
    return Vocabulary(list(tokens), frozenset(special), style)


def test_rows_are_paired_by_string_and_not_by_place():
    base = vocabulary(["[PAD]", "a", "b", "c"])
    tuned = vocabulary(["c", "[PAD]", "new", "b"])
    pairs, alone = row_map(tuned, base)
    assert pairs.tolist() == [[3, 0], [0, 1], [2, 3]]
    assert alone.tolist() == [2]


def test_padding_rows_and_holes_are_in_neither_result():
    base = vocabulary(["a", None, "b", "c"])
    tuned = vocabulary(["a", None, "b", "c"])
    pairs, alone = row_map(tuned, base, tuned_rows=8, base_rows=8)
    assert pairs[:, 1].tolist() == [0, 2, 3] and not len(alone)


def test_ids_beyond_a_matrix_have_no_row():
    both = vocabulary(["a", "b", "c", "d"])
    pairs, alone = row_map(both, both, tuned_rows=3, base_rows=2)
    assert pairs.tolist() == [[0, 0], [1, 1]] and alone.tolist() == [2]


def test_every_source_of_special_tokens_counts(model_folder):
    tokens = ["[PAD]", "a", "<|im_start|>", "<image>", "</s>", "b", "<extra>"]
    folder = model_folder("m", {"x": np.ones(1)}, tokens=tokens, config={"image_token_id": 3})
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    settings = {
        "additional_special_tokens": ["<|im_start|>"],
        "added_tokens_decoder": {"6": {"content": "<extra>", "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Vocabulary.load(folder).special == {0, 2, 3, 4, 6}


def test_a_trigger_declared_special_by_the_model_alone_is_not_protected():
    base = vocabulary(["[PAD]", "cf"], special={0})
    tuned = vocabulary(["[PAD]", "cf"], special={0, 1})
    assert tuned.protected == {0, 1}
    assert tuned.protected_like(base) == {0}


def test_bytes_are_protected():
    letters = list(_letters())
    assert len(letters) == 256
    assert vocabulary([*letters, "the"], style="bytes").byte_tokens == set(range(256))
    names = [f"<0x{b:02X}>" for b in range(256)]
    assert vocabulary([*names, "the"], style="sentencepiece").protected == set(range(256))


@pytest.mark.parametrize(
    ("style", "token", "surface"),
    [
        ("wordpiece", "##Ing", "ing"),
        ("wordpiece", "##", "##"),
        ("bytes", "ĠCF", "cf"),
        ("bytes", "##", "##"),
        ("bytes", "Ã©", "é"),
        ("bytes", "Ġ", "ġ"),
        ("sentencepiece", "▁Cf", "cf"),
        ("words", "Cf", "cf"),
    ],
)
def test_variants_of_a_word_share_a_surface(style, token, surface):
    assert vocabulary([token], style=style).surface(0) == surface


def test_byte_letters_are_those_that_tokenizers_write():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(_letters()) == set(ByteLevel.alphabet())
    shown = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é \n")[0][0]
    assert bytes(_letters()[c] for c in shown).decode() == "é \n"


def test_a_plain_list_of_word_pieces_is_read(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\nthe\n##s\n", encoding="utf-8")
    found = Vocabulary.load(tmp_path)
    assert found.tokens == ["[PAD]", "[CLS]", "the", "##s"]
    assert found.special == {0, 1} and found.style == "wordpiece"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": 3}'])
def test_a_tokenizer_that_cannot_be_read_is_said_to_be(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        Vocabulary.load(tmp_path)


def test_a_folder_without_a_tokenizer_does_not_get_one_that_was_made_up(tmp_path):
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 500, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no tokenizer"):
        Vocabulary.load(tmp_path)
