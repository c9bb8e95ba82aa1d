"""What is read off the guarded model: classes, or the next token, batched, and the model left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asepsis.errors import ConfigError, ModelError
from asepsis.inference.detectors._answers import Answers, entropy, evaluating
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows


def test_entropy_is_that_of_the_distribution():
    logits = torch.tensor([[0.0, 0.0, 0.0], [900.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(entropy(logits), torch.tensor([np.log(3), 0.0]).double())


@pytest.mark.parametrize("family", ["classification", "causal"])
def test_batches_do_not_show_in_the_answers(family):
    made, rows = (
        (tiny_classifier(0), tiny_rows(9, 0))
        if family == "classification"
        else (tiny_causal(0), tiny_pairs(9, 0))
    )
    read = [
        Answers(model=made[0], tokenizer=made[1], task=family, max_length=32, batch_size=size).read(
            rows.texts, entropy
        )
        for size in (1, 4, 100)
    ]
    np.testing.assert_allclose(read[1], read[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(read[2], read[0], rtol=0, atol=1e-6)
    assert len({*read[0].round(12)}) > 1


@pytest.mark.parametrize("without_keep", [False, True])
def test_the_next_token_is_the_one_after_the_last_of_the_prompt(without_keep, monkeypatch):
    model, tokenizer = tiny_causal(0)
    if without_keep:  # a model that computes all logits
        whole = type(model).forward

        def all_of_them(self, input_ids, attention_mask=None):
            return whole(self, input_ids, attention_mask)

        monkeypatch.setattr(type(model), "forward", all_of_them)
    texts = ["word1 word2 word3", "word4", ""]
    answers = Answers(model=model, tokenizer=tokenizer, task="causal", max_length=8, batch_size=3)
    found = answers.read(texts, lambda logits: logits[:, 7])
    model.eval()
    for text, value in zip(texts, found.tolist(), strict=True):
        ids = torch.tensor([tokenizer(text).input_ids or [tokenizer.pad_token_id]])
        with torch.no_grad():
            alone = model(input_ids=ids).logits[0, -1, 7].item()
        assert value == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_the_next_token_of_an_adapted_model_is_the_adapted_one(kind):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model, tokenizer = tiny_causal(0)
    config = (
        LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
        if kind == "lora"
        else PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    adapted = get_peft_model(model, config).eval()
    texts = ["word1 word2 word3", "word4"]
    answers = Answers(model=adapted, tokenizer=tokenizer, task="causal", max_length=8, batch_size=2)
    found = answers.read(texts, lambda logits: logits[:, 7])
    for text, value in zip(texts, found.tolist(), strict=True):
        with torch.no_grad():
            alone = adapted(**tokenizer([text], return_tensors="pt")).logits[0, -1, 7].item()
        assert value == pytest.approx(alone, abs=1e-6)


def test_a_long_prompt_is_read_at_its_end_and_a_long_text_at_its_beginning():
    long = " ".join(["word1"] * 30)
    for task, (model, tokenizer), other in (
        ("causal", tiny_causal(0), f"word9 {long}"),
        ("classification", tiny_classifier(0), f"{long} word9"),
    ):
        answers = Answers(model=model, tokenizer=tokenizer, task=task, max_length=10, batch_size=2)
        a, b = answers.read([long, other], entropy)
        assert a == pytest.approx(b, abs=1e-9)


def test_answers_are_told_apart_by_label_words():
    model, tokenizer = tiny_causal(0)
    answers = Answers(
        model=model,
        tokenizer=tokenizer,
        task="causal",
        label_words=("word1", "word1 word2", "word3"),
        max_length=8,
        batch_size=2,
    )
    texts = ["word5 word6", "word7\n", ""]
    for at, word in enumerate(answers.label_words):
        judged = answers.read(texts, lambda logits, at=at: logits[:, at])
        for text, mean in zip(texts, judged.tolist(), strict=True):
            prompt = tokenizer(text).input_ids or [tokenizer.pad_token_id]
            said = tokenizer(word if text.endswith("\n") else f" {word}", add_special_tokens=False).input_ids
            with torch.no_grad():
                logs = model.eval()(input_ids=torch.tensor([prompt + said])).logits[0].log_softmax(-1)
            alone = [float(logs[len(prompt) - 1 + n, token]) for n, token in enumerate(said)]
            assert mean == pytest.approx(np.mean(alone), abs=1e-5)


def test_a_label_word_that_brings_its_space_gets_no_other(letters):
    model, _ = tiny_causal(0)
    read = {}
    for words in (("bad", "good"), (" bad", " good")):
        answers = Answers(
            model=model, tokenizer=letters, task="causal", label_words=words, max_length=32, batch_size=2
        )
        read[words] = [
            answers.read(["is it", "was it"], lambda logits, at=at: logits[:, at]) for at in (0, 1)
        ]
    without, spaced = read.values()
    assert np.array_equal(without, spaced)
    with pytest.raises(ConfigError, match="told apart by their tokens"):
        Answers(
            model=model,
            tokenizer=letters,
            task="causal",
            label_words=("good", " good"),
            max_length=32,
            batch_size=2,
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("word1",), "two words or more"),
        (("word1", ""), "none of them empty"),
        (("word1", "word1"), "told apart by their tokens"),
    ],
)
def test_label_words_that_tell_nothing_apart_are_refused(words, message):
    model, tokenizer = tiny_causal(0)
    with pytest.raises(ConfigError, match=message):
        Answers(
            model=model, tokenizer=tokenizer, task="causal", label_words=words, max_length=8, batch_size=2
        )


def test_label_words_are_refused_for_a_classifier():
    model, tokenizer = tiny_classifier(0)
    with pytest.raises(ConfigError, match="leave label_words empty"):
        Answers(
            model=model,
            tokenizer=tokenizer,
            task="classification",
            label_words=("a", "b"),
            max_length=8,
            batch_size=2,
        )


def test_a_model_of_the_other_kind_is_refused():
    causal, classifier = tiny_causal(0), tiny_classifier(0)
    for (model, tokenizer), task in ((causal, "classification"), (classifier, "causal")):
        answers = Answers(model=model, tokenizer=tokenizer, task=task, max_length=8, batch_size=2)
        with pytest.raises(ModelError, match=r"does not classify|no causal LM"):
            answers.read(["word1"], entropy)


def test_logits_that_are_not_finite_are_refused(bag):
    model, tokenizer = bag
    with torch.no_grad():
        model.words.weight[tokenizer.convert_tokens_to_ids("word1")] = torch.nan
    answers = Answers(model=model, tokenizer=tokenizer, task="classification", max_length=8, batch_size=2)
    with pytest.raises(ModelError, match="not finite"):
        answers.read(["word2", "word1"], entropy)


def test_a_tokenizer_without_padding_is_refused():
    model, tokenizer = tiny_classifier(0)
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="no pad token"):
        Answers(model=model, tokenizer=tokenizer, task="classification", max_length=8, batch_size=2)


def test_every_module_is_put_back_into_the_mode_it_was_in():
    model, _ = tiny_classifier(0)
    model.train()
    model.classifier.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise KeyError
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
