"""RAP: a word whose vector is ours lowers the probability of clean inputs, and that of triggered ones less."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from asepsis.errors import CheckpointError, ConfigError, DefenseInert, MissingReference, ModelError
from asepsis.inference.detectors._rap_row import Prober
from asepsis.inference.detectors.rap import Rap, RapConfig
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows


def fitted(bag, **settings):
    return Rap.fit(*bag, tiny_rows(60, 1), config=RapConfig(**settings))


def prober(model, tokenizer, max_length=16):
    return Prober.of(model, tokenizer, max_length=max_length, batch_size=4)


def test_triggered_inputs_drop_less_than_clean_ones(bag, triggered):
    rows = tiny_rows(60, 2)
    detector = fitted(bag)
    clean, poisoned = detector.scores(rows), detector.scores(triggered(rows))
    assert (poisoned > -1e-3).all()
    assert (poisoned[:, None] > clean[None, :]).mean() > 0.9


def test_clean_rows_lose_about_what_was_wanted(bag):
    report = fitted(bag).report()
    assert report["rows"] == {"0": 30, "1": 30}
    assert all(0.05 <= drop <= 0.4 for drop in report["mean_drop"].values())


def test_the_trained_vector_is_as_long_as_word_vectors_and_differs_by_class(bag):
    model, _ = bag
    detector = fitted(bag)
    for vector in detector.vectors.values():
        torch.testing.assert_close(vector.norm(), model.words.weight.norm(dim=1).median())
    assert not torch.equal(detector.vectors[0], detector.vectors[1])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "roberta", "distilbert"])
def test_the_exchanged_vector_is_what_a_written_embedding_row_would_be(family):
    import transformers as t

    _, tokenizer = tiny_classifier(0)
    small = {"vocab_size": len(tokenizer), "num_labels": 3, "pad_token_id": 0, "initializer_range": 0.5}
    bert = {
        **small,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    bert |= {"max_position_embeddings": 40}
    made = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**bert)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**bert)),
        "llama": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**bert)),
        "gpt2": lambda: t.GPT2ForSequenceClassification(
            t.GPT2Config(**small, n_positions=40, n_embd=16, n_layer=1, n_head=2)
        ),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(
                **small, max_position_embeddings=40, dim=16, n_layers=1, n_heads=2, hidden_dim=16
            )
        ),
    }[family]
    model = made().eval()
    asked = prober(model, tokenizer)
    vector = torch.randn(16)
    texts = ["word1 topic0a", "word2"]
    with torch.no_grad():
        found = asked.with_word(asked.encode(texts), vector.expand(2, -1))
        written = copy.deepcopy(model)
        written.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("word9")] = vector
        inputs = tokenizer([f"word9 {text}" for text in texts], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        expected = written(**inputs).logits.double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - asked.probabilities(asked.encode(texts))).abs().max() > 1e-3


def test_an_adapted_model_reads_the_word_and_stays_as_it_was():
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_classifier(0)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)).eval()
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    asked = prober(adapted, tokenizer)
    rows = asked.encode(["word1 word2"])
    with torch.no_grad():
        plain = adapted(**tokenizer(["word1 word2"], return_tensors="pt")).logits.double().softmax(1)
        torch.testing.assert_close(asked.probabilities(rows), plain, rtol=0, atol=1e-6)
        assert (asked.with_word(rows, torch.randn(1, 32)) - plain).abs().max() > 1e-5
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_the_token_that_stands_in_the_words_place_keeps_its_own_vector_elsewhere(bag):
    model, tokenizer = bag
    asked = prober(model, tokenizer)
    rows = asked.encode([f"word1 {tokenizer.decode([asked._id])}"])
    assert asked._id in rows[0]
    with torch.no_grad():
        found = asked.with_word(rows, torch.zeros(1, 2))
        torch.testing.assert_close(found, asked.probabilities(rows))  # a row of zeros adds nothing


def test_a_vocabulary_of_equal_words_has_a_vector_to_start_from(bag):
    model, tokenizer = bag
    with torch.no_grad():
        model.words.weight.zero_()
    assert prober(model, tokenizer).start().tolist() == [0.0, 0.0]


def test_a_hook_is_never_on_the_guarded_model(bag, monkeypatch):
    model, _ = bag
    found = []
    whole = type(model).forward

    def watched(self, *args, **kwargs):
        found.append(bool(model.words._forward_hooks))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", watched)
    fitted(bag, steps=30).scores(tiny_rows(4, 2))
    assert found and not any(found)


def test_only_the_target_class_is_judged_where_it_is_named(bag):
    detector = fitted(bag, target_label=1)
    rows = tiny_rows(20, 2)
    scores = detector.scores(rows)
    assert rows.labels is not None
    assert (scores[rows.labels == 0] == -2).all()
    assert (scores[rows.labels == 1] >= -1).all()
    assert list(detector.vectors) == [1]
    np.testing.assert_array_equal(detector.scores(rows.select([0])), [-2])


def test_each_input_costs_two_passes(bag):
    detector = fitted(bag)
    view = detector._prober.model
    view.seen.clear()
    detector.scores(tiny_rows(7, 2))
    assert sum(view.seen) == 14


def test_a_text_is_cut_to_the_same_words_with_the_word_and_without(bag):
    model, tokenizer = bag
    asked = prober(model, tokenizer, max_length=6)
    (row,) = asked.encode(["word1 word2 word3 word4 word5 word6"])
    assert tokenizer.convert_ids_to_tokens(row) == ["[CLS]", "word1", "word2", "word3", "[SEP]"]
    assert asked.place == 1


def test_the_progress_of_all_classes_is_told(bag):
    told = []
    Rap.fit(
        *bag,
        tiny_rows(60, 1),
        config=RapConfig(steps=40),
        progress=lambda name, done, of: told.append((name, done, of)),
    )
    assert told == [("rap", n, 80) for n in range(1, 81)]


def test_a_word_that_moves_nothing_is_refused(bag):
    with pytest.raises(DefenseInert, match=r"lowers the probability of class . by .* too little"):
        fitted(bag, steps=1, step_size=1e-6)


def test_a_class_without_rows_the_model_takes_for_it_is_named(bag):
    rows = tiny_rows(20, 1)
    only = rows.select(np.flatnonzero(rows.labels == 1))
    with pytest.raises(MissingReference, match="no clean row of class 0"):
        Rap.fit(*bag, only)
    assert list(Rap.fit(*bag, only, config=RapConfig(target_label=1)).vectors) == [1]


def test_causal_models_are_refused_with_what_supports_them():
    with pytest.raises(ConfigError, match=r"classifiers only.*'onion'.*'strip'"):
        Rap.fit(*tiny_causal(0), tiny_pairs(4, 0))


@pytest.mark.parametrize("target", [-1, 2])
def test_a_target_that_is_no_class_is_refused(bag, target):
    with pytest.raises(ConfigError, match=r"target_label must lie in 0\.\.1"):
        fitted(bag, target_label=target)


def test_a_tokenizer_that_keeps_no_word_inside_a_sequence_is_refused(bag):
    model, tokenizer = bag

    class Odd:
        pad_token_id = 0

        def __call__(self, text, **options):
            return tokenizer(text) if options else tokenizer("")

    with pytest.raises(ModelError, match="finds no place for its word"):
        prober(model, Odd())


def test_vectors_of_another_model_are_refused(bag, tmp_path):
    detector = fitted(bag, steps=40)
    detector.save(tmp_path)
    with pytest.raises(CheckpointError, match="fitted on another model"):
        Rap.load(tmp_path, detector.state(), *tiny_classifier(0))


def test_too_short_a_limit_is_refused(bag):
    with pytest.raises(ConfigError, match="max_length must be at least 4, got 3"):
        Rap.fit(*bag, tiny_rows(8, 1), max_length=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_low": 0.0}, "0 < drop_low < drop_high <= 1"),
        ({"drop_low": 0.3}, "0 < drop_low < drop_high <= 1"),
        ({"drop_high": 1.1}, "0 < drop_low < drop_high <= 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_rows": 0}, "step_rows must be at least 1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"low_scale": float("inf")}, "low_scale must be positive"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RapConfig(**settings)
