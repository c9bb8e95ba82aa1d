"""Trainings in which word embeddings learn and little else does, and what the drivers tell a defense about tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from asepsis.core.exposure import PooledNetwork, embedding_block, is_tied, part_to_train, word_embeddings
from asepsis.core.phases import Acted, Encode, Outcome, Score, Stage, Train
from asepsis.errors import ConfigError, ModelError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training.collate import Collator
from asepsis.training.loop import LoopDriver
from asepsis.training.settings import Settings

SETTINGS = Settings(epochs=1, batch_size=6, learning_rate=2e-3, device="cpu", precision="fp32", max_length=32)
WORDS = "bert.embeddings.word_embeddings.weight"


def expose(**fields):
    return Train(name="expose", steps=4, trainable="embeddings", weight_decay=0.0, **fields)


def answers_of(driver, requests):
    answers = []

    def script():
        for request in requests:
            answers.append((yield request))
        return Outcome(acted=Acted(steps=1))

    driver.run(script())
    return answers


def driver_for(data, make=tiny_classifier, **options):
    model, tokenizer = make(3)
    return LoopDriver(model, tokenizer, data, SETTINGS, **options)


def test_flags_are_put_back_and_frozen_embeddings_learn_meanwhile():
    model, tokenizer = tiny_classifier(0)
    words = word_embeddings(model).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = words.detach().clone()
    answers_of(LoopDriver(model, tokenizer, tiny_rows(20, 0), SETTINGS), [expose()])
    assert not torch.equal(words, before)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_pooling_is_the_mean_over_what_is_read_or_over_all_positions():
    model, _ = tiny_classifier(0, dropout=0.0)
    block = embedding_block(model)
    ids, mask = torch.tensor([[2, 7, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
    vectors = block(ids)[0]
    plain = PooledNetwork(block, 2, seed=0)
    torch.testing.assert_close(plain(ids, mask).logits[0], plain.head(vectors[:4].mean(0)))
    padded = PooledNetwork(block, 2, seed=0, padding=(0, 9))
    everything = block(torch.tensor([[2, 7, 9, 3, 0, 0, 0, 0, 0]]))[0]
    torch.testing.assert_close(padded(ids, mask).logits[0], padded.head(everything.mean(0)))
    assert torch.equal(plain.head.weight, padded.head.weight)
    assert not torch.equal(plain.head.weight, PooledNetwork(block, 2, seed=1).head.weight)


def test_the_block_holds_positions_for_an_encoder_and_words_alone_for_a_decoder():
    encoder, decoder = tiny_classifier(0)[0], tiny_causal(0)[0]
    assert embedding_block(encoder) is encoder.bert.embeddings
    assert embedding_block(decoder) is decoder.model.embed_tokens


def test_a_pooled_network_needs_classes():
    with pytest.raises(ConfigError, match="the data has no classes"):
        answers_of(driver_for(tiny_pairs(8, 0), tiny_causal), [expose(network="pooled")])


def test_scores_on_the_way_of_a_partial_training_are_refused():
    with pytest.raises(ConfigError, match="only trainings of the whole model"):
        expose(network="pooled", snapshots=(1,), records=object())


def test_quantized_and_adapted_embeddings_are_refused():
    from peft import TrainableTokensConfig, get_peft_model

    model = tiny_classifier(0)[0]
    adapted = get_peft_model(
        model, TrainableTokensConfig(token_indices=[7], target_modules=["word_embeddings"])
    )
    with pytest.raises(ModelError, match="an adapter replaces the word embeddings"):
        word_embeddings(adapted)
    model = tiny_classifier(0)[0]
    words = model.bert.embeddings.word_embeddings
    words.weight = nn.Parameter(words.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"no plain matrix of floats \(torch.int8\)"):
        word_embeddings(model)


def test_tied_output_layers_are_seen():
    model, _ = tiny_causal(0)
    assert not is_tied(model)
    model.lm_head.weight = model.model.embed_tokens.weight
    assert is_tied(model)
    assert not is_tied(tiny_classifier(0)[0])


def test_tokens_are_dropped_by_id_and_rows_close_up():
    data = tiny_rows(12, 0)
    _, tokenizer = tiny_classifier(0)
    dropped = np.array([5, 6, 7, 8, 9, 10, 45, 46])
    plain = Collator(tokenizer, data, max_length=32)
    without = Collator(tokenizer, data, max_length=32, drop_tokens=dropped)
    for position in range(12):
        ids = plain.read_ids([position], part="inputs")[0]
        assert without.read_ids([position], part="inputs")[0] == [i for i in ids if i not in dropped]
    batch = without([(p, False) for p in range(12)]).inputs
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert batch["attention_mask"].any(0).all(), "no column of padding alone"


def test_a_row_with_nothing_left_reads_one_padding_token():
    data = tiny_rows(4, 0)
    _, tokenizer = tiny_classifier(0)
    batch = Collator(tokenizer, data, max_length=32, drop_tokens=np.arange(1, 200))([(0, False)]).inputs
    assert batch["input_ids"].tolist() == [[0]] and batch["attention_mask"].tolist() == [[1]]


def test_dropping_leaves_responses_and_one_prompt_token():
    data = tiny_pairs(12, 0)
    _, tokenizer = tiny_causal(0)
    plain, without = (
        Collator(tokenizer, data, max_length=32, drop_tokens=d) for d in (None, np.arange(5, 200))
    )
    for prompt, response in zip(data.texts, data.responses, strict=True):
        assert without.encode_pair(prompt, response) == ([0], plain.encode_pair(prompt, response)[1])


def test_encoded_rows_are_what_training_reads():
    data, other = tiny_pairs(30, 0), tiny_pairs(5, 9)
    driver = driver_for(data, tiny_causal)
    prompts, said, others = answers_of(driver, [Encode(), Encode(part="responses"), Encode(data=other)])
    batch = Collator(driver.tokenizer, data, max_length=32)([(29, False)])
    last = [part.ids[part.starts[29] : part.starts[30]].tolist() for part in (prompts, said)]
    assert last[0] + last[1] == batch.inputs["input_ids"][0].tolist()
    assert (len(prompts.starts), len(others.starts)) == (31, 6)
    np.testing.assert_array_equal(np.bincount(prompts.row_of), np.diff(prompts.starts))


def test_stages_are_kept_only_where_they_are_wanted():
    requests = [Stage(name="first"), Train(name="t", steps=2), Score()]
    wanted, plain = driver_for(tiny_rows(20, 0), keep_stages=True), driver_for(tiny_rows(20, 0))
    start = tiny_classifier(3)[0].state_dict()
    for driver in (wanted, plain):
        answers_of(driver, requests)
    assert plain.stages == {}
    assert list(wanted.stages) == ["first"]
    assert all(torch.equal(start[k], v) for k, v in wanted.stages["first"].items())
    assert set(wanted.stages["first"]) == {k for k, _ in wanted.model.named_parameters()}


def test_a_failed_training_leaves_the_flags():
    model, _ = tiny_classifier(0)
    with (
        pytest.raises(RuntimeError, match="stop"),
        part_to_train(model, expose(), n_classes=2, seed=0, padding=(0, 8)),
    ):
        assert [k for k, p in model.named_parameters() if p.requires_grad] == [WORDS]
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in model.parameters())
