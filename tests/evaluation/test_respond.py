"""Success without generation agrees with generation, and the clean loss with the model's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.respond import begins_with, clean_loss, response_success_rate
from asepsis.testing import tiny_causal, tiny_pairs, tiny_rows
from asepsis.training.collate import Collator
from asepsis.training.forward import autocast, resolve_precision

DATA = tiny_pairs(12, 0)


@pytest.fixture(scope="module")
def causal():
    model, tokenizer = tiny_causal(0)
    with torch.no_grad():
        for parameter in model.parameters():  # weights drawn small answer every prompt alike
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval(), tokenizer


@torch.no_grad()
def generated(model, tokenizer, prompt, tokens):
    ids = torch.tensor([Collator(tokenizer, DATA, max_length=64).encode_pair(prompt, "x")[0]])
    with autocast(torch.device("cpu"), resolve_precision("auto", torch.device("cpu"))):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
        )
    return tokenizer.decode(out[0, ids.shape[1] :])


@pytest.mark.parametrize("tokens", [1, 3])
def test_success_is_what_greedy_decoding_would_say(causal, tokens):
    model, tokenizer = causal
    said = [generated(model, tokenizer, prompt, tokens) for prompt in DATA.texts]
    for response in set(said):
        expected = [answer == response for answer in said]
        found = begins_with(model, tokenizer, DATA, response, tokens=tokens, max_length=64, batch_size=5)
        assert found.tolist() == expected
    assert len(set(said)) > 1


def test_only_the_first_tokens_count(causal):
    model, tokenizer = causal
    first = generated(model, tokenizer, DATA.texts[0], 2)
    assert begins_with(model, tokenizer, DATA, first + " zzz zzz", tokens=2, max_length=64)[0]
    assert not begins_with(model, tokenizer, DATA, first + " zzz zzz", tokens=4, max_length=64)[0]


def test_a_long_response_takes_no_room_from_the_prompt(causal):
    model, tokenizer = causal
    first = generated(model, tokenizer, DATA.texts[0], 2)
    room = len(tokenizer(DATA.texts[0]).input_ids) + 2
    row = DATA.select([0])
    assert begins_with(model, tokenizer, row, first + " zzz" * 60, tokens=2, max_length=room)[0]


def test_the_rate_counts_prompts(causal):
    first = generated(*causal, DATA.texts[0], 1)
    rate = response_success_rate(*causal, DATA, first, tokens=1, max_length=64)
    assert (
        rate.n == 12 and rate.value == begins_with(*causal, DATA, first, tokens=1, max_length=64).mean() > 0
    )


def test_clean_loss_is_the_mean_over_response_tokens(causal):
    model, tokenizer = causal
    batch = Collator(tokenizer, DATA, max_length=64)([(p, False) for p in range(len(DATA))])
    with torch.no_grad():
        expected = model(**batch.inputs, labels=batch.labels).loss.item()
    assert clean_loss(model, tokenizer, DATA, max_length=64, batch_size=5) == pytest.approx(
        expected, rel=1e-2
    )


def test_what_cannot_be_measured_is_refused(causal):
    with pytest.raises(DataError, match="causal"):
        begins_with(*causal, tiny_rows(4, 0), "x")
    with pytest.raises(ConfigError, match="response"):
        begins_with(*causal, DATA, " ")
    with pytest.raises(ConfigError, match="response"):
        begins_with(*causal, DATA, "x", tokens=0)


def test_the_rows_own_responses_do_not_matter(causal):
    first = generated(*causal, DATA.texts[0], 1)
    other = replace(DATA, responses=["unlike"] * len(DATA))
    ours, theirs = (begins_with(*causal, d, first, tokens=1, max_length=64) for d in (DATA, other))
    assert ours.tolist() == theirs.tolist()


def test_virtual_tokens_do_not_shift_what_is_answered():
    from peft import PromptTuningConfig, get_peft_model

    model, tokenizer = tiny_causal(0)
    tuned = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    rows = tiny_pairs(1, 0)
    ids = torch.tensor([tokenizer(rows.texts[0]).input_ids])
    with torch.no_grad():
        said = int(tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax())
    words = {
        word: tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in tokenizer.get_vocab()
    }
    found = {word for word in words if begins_with(tuned, tokenizer, rows, word, tokens=1).all()}
    assert found and found == {word for word, token in words.items() if token == said}
