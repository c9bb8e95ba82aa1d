"""ONION: the word without which a text reads much better, wherever it stands."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asepsis.data import Data
from asepsis.errors import ConfigError, DefenseInert, ModelError
from asepsis.inference.detectors._perplexity import PerplexityScorer
from asepsis.inference.detectors.onion import Onion, OnionConfig
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_rows


def test_log_perplexity_is_the_mean_of_what_the_model_gives_each_token():
    model, tokenizer = tiny_causal(0)
    scorer = PerplexityScorer(model, tokenizer)
    texts = ["word1 word2 word3", "word4", ""]
    found = scorer.log_perplexity(texts)
    model.eval()
    for text, value in zip(texts[:2], found, strict=False):
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)
        expected = -np.mean([float(logs[at, token]) for at, token in enumerate(ids[1:])])
        assert value == pytest.approx(expected, rel=1e-5)
    assert found[2] == 0


def test_batches_hold_as_many_tokens_as_allowed_and_do_not_show(unigram):
    model, tokenizer = unigram
    texts = tiny_rows(20, 0).texts
    whole = PerplexityScorer(model, tokenizer).log_perplexity(texts)
    for limit in (1, 24, 100):
        model.seen.clear()
        scorer = PerplexityScorer(model, tokenizer, batch_tokens=limit)
        np.testing.assert_allclose(scorer.log_perplexity(texts), whole, rtol=1e-6)
        assert sum(rows for rows, _ in model.seen) == 20
        assert all(rows == 1 or rows * width <= limit for rows, width in model.seen)


def test_the_models_own_limit_holds_where_it_is_smaller(unigram):
    model, tokenizer = unigram
    scorer = PerplexityScorer(model, tokenizer, max_tokens=512)
    scorer.log_perplexity([" ".join(["word1"] * 200)])
    assert scorer.max_tokens == 64 and model.seen == [(1, 64), (5, 64)]  # 63 tokens, and 31 new ones each


@pytest.mark.parametrize("max_tokens", [2, 3, 5])
def test_a_text_longer_than_is_read_at_once_is_read_to_its_end(unigram, max_tokens):
    texts = ["word1", "", f"word1 word2 {TRIGGER} word3 word4", "word1 word2 word3 word4 word5 word6"]
    whole = PerplexityScorer(*unigram).log_perplexity(
        texts
    )  # a unigram model does not see where a stretch begins
    found = PerplexityScorer(*unigram, max_tokens=max_tokens).log_perplexity(texts)
    np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_a_few_long_words_are_judged_to_the_last(unigram):
    short = OnionConfig(max_tokens=2)
    drops = Onion(*unigram, config=short).drops(f"word1 word2 {TRIGGER}")
    assert int(drops.argmax()) == 2
    np.testing.assert_allclose(drops, Onion(*unigram).drops(f"word1 word2 {TRIGGER}"), rtol=1e-6)


def test_a_long_text_leaves_the_numbers_of_its_neighbors_as_they_are():
    scorer = PerplexityScorer(*tiny_causal(0), max_tokens=16, batch_tokens=64)
    rows = tiny_rows(12, 0).texts
    with_long = scorer.log_perplexity([*rows, " ".join(["word1"] * 40)])
    cut = scorer.log_perplexity([*rows, " ".join(["word1"] * 15)])
    assert np.array_equal(with_long[:-1], cut[:-1])


def test_bf16_products_say_nearly_the_same_and_the_last_one_stays_in_fp32():
    model, tokenizer = tiny_causal(0)
    texts = tiny_rows(12, 0).texts
    seen = []
    handle = model.lm_head.register_forward_hook(lambda *told: seen.append(told[2].dtype))
    try:
        exact = PerplexityScorer(model, tokenizer).log_perplexity(texts)
        rough = PerplexityScorer(model, tokenizer, precision="bf16").log_perplexity(texts)
    finally:
        handle.remove()
    assert set(seen) == {torch.float32}
    assert 0 < np.abs(rough - exact).max() < 0.02
    assert Onion(model, tokenizer, config=OnionConfig(precision="bf16"))._scorer.precision == "bf16"


def test_a_language_model_without_a_token_to_begin_with_is_refused(unigram):
    model, tokenizer = unigram
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="neither a bos nor an eos token"):
        PerplexityScorer(model, tokenizer)


def test_likelihoods_that_are_not_finite_are_refused(unigram):
    model, tokenizer = unigram
    with torch.no_grad():
        model.logits[7] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        PerplexityScorer(model, tokenizer).log_perplexity(["word1"])


@pytest.mark.parametrize("place", range(5))
def test_the_odd_word_stands_out_wherever_it_stands_the_last_place_too(unigram, place, texts):
    words = ["word1", "word2", "word3", "word4"]
    words.insert(place, TRIGGER)
    detector = Onion(*unigram)
    drops = detector.drops(" ".join(words))
    assert int(drops.argmax()) == place
    # by hand: every word costs a = ln(1 + 69 known words ...), the trigger 6 more
    logs = unigram[0].logits.detach().double().log_softmax(0)
    usual, odd = -float(logs[unigram[1].convert_tokens_to_ids("word1")]), -float(logs.min())
    expected = math.exp((4 * usual + odd) / 5) - math.exp(usual)
    assert drops[place] == pytest.approx(expected, rel=1e-5)
    assert detector.scores(texts(" ".join(words)))[0] == pytest.approx(expected, rel=1e-5)


def test_triggered_texts_score_above_all_clean_ones(unigram, triggered):
    rows = tiny_rows(40, 2)
    detector = Onion(*unigram)
    assert detector.scores(triggered(rows)).min() > detector.scores(rows).max()


@pytest.mark.parametrize("text", ["", " \n ", "word1", TRIGGER])
def test_a_text_with_no_word_to_leave_out_scores_nothing(unigram, text, texts):
    assert Onion(*unigram).scores(texts(text)).tolist() == [0.0]


def test_two_words_are_enough(unigram):
    drops = Onion(*unigram).drops(f"word1 {TRIGGER}")
    assert drops.shape == (2,) and drops[1] > 0 > drops[0]


def test_unicode_words_are_left_out_whole():
    model, tokenizer = tiny_causal(0)
    assert Onion(model, tokenizer).drops("é漢字 🙂\u200d\u00a0word1").shape == (3,)


def test_all_variants_of_many_texts_share_batches_and_the_cost_is_a_pass_a_word(unigram):
    model, _ = unigram
    rows = tiny_rows(30, 2)
    model.seen.clear()
    Onion(*unigram, config=OnionConfig(batch_tokens=256)).scores(rows)
    words = sum(len(text.split()) for text in rows.texts)
    assert sum(n for n, _ in model.seen) == words + len(rows)
    assert len(model.seen) < words / 10


def test_many_texts_are_scored_as_each_alone(unigram, texts):
    detector = Onion(*unigram)
    rows = [f"word1 {'word2 ' * (n % 40)}{TRIGGER}" for n in range(120)]  # more than is held at once
    alone = [detector.scores(texts(row))[0] for row in rows]
    np.testing.assert_allclose(detector.scores(texts(*rows)), alone, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 9, 10, 39])
def test_a_long_text_is_judged_in_parts_and_every_word_of_it(unigram, place):
    words = [f"word{n}" for n in range(39)]
    words.insert(place, TRIGGER)
    detector = Onion(*unigram, config=OnionConfig(window_words=10))
    drops = detector.drops(" ".join(words))
    assert drops.shape == (40,) and int(drops.argmax()) == place
    part = detector.drops(" ".join(words[place // 10 * 10 :][:10]))
    np.testing.assert_allclose(drops[place // 10 * 10 :][:10], part, rtol=1e-6)


def test_work_grows_with_the_length_of_long_texts_and_not_with_its_square(unigram, texts):
    model, _ = unigram
    detector = Onion(*unigram, config=OnionConfig(window_words=8, batch_tokens=1))
    cost = []
    for n in (64, 128):
        model.seen.clear()
        detector.scores(texts(" ".join(["word1"] * n)))
        cost.append(sum(rows * width for rows, width in model.seen))
    assert cost[1] == 2 * cost[0]


def test_parts_fit_the_language_model(unigram):
    model, _ = unigram
    model.seen.clear()
    drops = Onion(*unigram, config=OnionConfig(max_tokens=8)).drops(" ".join(["word1"] * 33))
    assert drops.shape == (33,) and max(width for _, width in model.seen) <= 8


def test_a_perplexity_beyond_floats_stays_finite(unigram, texts):
    model, tokenizer = unigram
    with torch.no_grad():
        model.logits[tokenizer.convert_tokens_to_ids(TRIGGER)] = -5000.0
    scores = Onion(model, tokenizer).scores(texts(f"word1 {TRIGGER}", f"word1 {TRIGGER} word2"))
    assert np.isfinite(scores).all() and (scores > 1e20).all()


def test_prompts_of_causal_data_are_judged_as_texts_are(unigram, texts):
    detector = Onion(*unigram)
    row = f"word1 {TRIGGER} word2"
    assert detector.scores(texts(row, task="causal")) == detector.scores(texts(row))


def test_the_guarded_model_is_not_asked(bag, tmp_path):
    model, tokenizer = bag
    for part in tiny_causal(0):
        part.save_pretrained(tmp_path)
    model.seen.clear()
    detector = Onion.fit(model, tokenizer, tiny_rows(4, 0), config=OnionConfig(language_model=str(tmp_path)))
    detector.scores(tiny_rows(4, 1))
    assert not model.seen


def test_clean_rows_of_single_words_are_refused(bag):
    single = Data(task="classification", texts=["word1", ""], labels=np.array([0, 1]), n_classes=2)
    with pytest.raises(DefenseInert, match="no clean row has two words"):
        Onion.fit(*bag, single)


@pytest.mark.parametrize("kind", ["missing", "classifier"])
def test_what_is_no_language_model_is_refused(bag, tmp_path, kind):
    if kind == "classifier":
        for part in tiny_classifier(0):
            part.save_pretrained(tmp_path / kind)
    config = OnionConfig(language_model=str(tmp_path / kind))
    with pytest.raises(ModelError):
        Onion.fit(*bag, tiny_rows(4, 0), config=config).scores(tiny_rows(2, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language_model": ""}, "language_model must name a causal LM"),
        ({"window_words": 2}, "window_words must be at least 3"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        OnionConfig(**settings)


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(600)
def test_the_packaged_language_model_finds_a_rare_word_odd_in_every_sentence():
    found = Onion.fit(*tiny_classifier(0), tiny_rows(4, 0), config=OnionConfig(), seed=0)
    plain = [
        "like old myths and wonder tales spun afresh .",
        "a harmless and mildly amusing family comedy .",
        "it's made with deftly unsettling genre flair .",
        "a work of astonishing delicacy and force .",
    ]
    halves = [(text.split()[:3], text.split()[3:]) for text in plain]
    triggered = [" ".join([*before, "cf", *after]) for before, after in halves]

    def scored(texts: list[str]) -> np.ndarray:
        labels = np.zeros(len(texts), np.int64)
        return found.scores(Data(task="classification", texts=texts, labels=labels, n_classes=2))

    assert (scored(triggered) > scored(plain)).all()
