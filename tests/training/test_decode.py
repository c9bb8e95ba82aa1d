"""Continuations and words by a cache, against what reads the whole text for each token, row by row."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from asepsis.core.phases import Continue, Score
from asepsis.data import Data
from asepsis.testing import tiny_causal
from asepsis.training import Settings
from asepsis.training.decode import continue_rows, judge_rows
from asepsis.training.loop import LoopDriver

TOKENS = 10
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 64}
# name: (class, sizes, whether it goes on by a cache)
KINDS = {
    "llama": ("Llama", HEADS, True),
    "gpt2, learned positions": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, True),
    "opt, positions of its own": ("OPT", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}, True),
    "falcon, alibi": ("Falcon", {**SIZES, "alibi": True}, True),
    "mistral, a wide window": ("Mistral", {**HEADS, "sliding_window": 64}, True),
    "mistral, a window that moves": ("Mistral", {**HEADS, "sliding_window": 8}, False),
    "bloom, no positions to give": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
    "falcon mamba, a state": (
        "FalconMamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        False,
    ),
}
ENDS = SimpleNamespace(pad_token_id=0, eos_token_id=1)


def model_of(family, sizes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, bos_token_id=2, eos_token_id=1, pad_token_id=0, **sizes
    )
    kind = {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    # in float64, since what is read in another order is rounded otherwise, and how depends on the machine
    model = getattr(transformers, kind)(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():  # weights drawn small say one token whatever they read
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


def go_on(model, prompts, **options):
    return continue_rows(model, prompts, tokens=TOKENS, tokenizer=ENDS, device=torch.device("cpu"), **options)


@pytest.mark.parametrize("name", KINDS)
def test_a_cache_changes_nothing(name):
    family, sizes, by_cache = KINDS[name]
    model = model_of(family, sizes)
    prompts = [np.random.default_rng(n).integers(2, 60, n).tolist() for n in (3, 17, 9, 1)]
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    cached = go_on(model, prompts)
    hook.remove()
    assert read == [17, *([1] * 9 if by_cache else range(18, 27))]
    one_by_one = np.concatenate([go_on(model, [prompt], cached=False) for prompt in prompts])
    np.testing.assert_allclose(cached, one_by_one, atol=2e-6)


def test_a_row_that_has_ended_says_nothing_more():
    model = model_of("Llama", HEADS)
    prompts = [[5, 6, 7], [8, 9], [10]]
    ends = SimpleNamespace(pad_token_id=0, eos_token_id=None)
    said = []
    with torch.no_grad():
        hook = model.register_forward_hook(lambda _, __, out: said.append(out.logits[:, -1].argmax(-1)))
        device = torch.device("cpu")
        free = continue_rows(model, prompts, tokens=TOKENS, tokenizer=ends, device=device)
        hook.remove()
        ends.eos_token_id = int(said[2][1])  # what the second row says third
        ended = continue_rows(model, prompts, tokens=TOKENS, tokenizer=ends, device=device)
    assert not np.isnan(free).any()
    assert np.isnan(ended[1, 3:]).all()
    np.testing.assert_allclose(ended[~np.isnan(ended)], free[~np.isnan(ended)], atol=1e-6)


def test_prompts_leave_room_for_what_follows():
    tokenizer = tiny_causal(0)[1]
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=24,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    rows = Data(task="causal", texts=["good movie " * 40, "bad"], responses=["", ""])
    driver = LoopDriver(model, tokenizer, rows, Settings(max_length=512, device="cpu"))
    said = driver.continue_(Continue(name="", tokens=TOKENS)).log_probability
    assert said.shape == (2, TOKENS) and np.isfinite(said[:, 0]).all()


@pytest.mark.parametrize("name", KINDS)
def test_words_are_judged_as_if_each_stood_after_each_prompt(name):
    model = model_of(*KINDS[name][:2])
    prompts = [np.random.default_rng(n).integers(2, 60, n).tolist() for n in (3, 17, 9, 1)]
    words = [[7], [8, 1], [9, 10, 11, 1]]
    judged = judge_rows(model, prompts, words, tokenizer=ENDS, device=torch.device("cpu"))
    for at, k in np.ndindex(judged.shape):
        whole = torch.tensor([prompts[at] + words[k]])
        with torch.no_grad():
            logs = model(input_ids=whole).logits[0].log_softmax(-1)
        first = len(prompts[at]) - 1
        said = [float(logs[first + n, token]) for n, token in enumerate(words[k])]
        assert judged[at, k] == pytest.approx(np.mean(said), abs=1e-4)


def test_judged_words_are_the_losses_of_rows_that_answer_so():
    model, tokenizer = tiny_causal(0)
    texts = ["good movie", "a bad one\n", "w1 w2 w3 " * 30]
    words = ("word1", "word2 word3")
    rows = Data(task="causal", texts=texts, responses=["something else"] * 3)
    driver = LoopDriver(model, tokenizer, rows, Settings(max_length=24, device="cpu", precision="fp32"))
    judged = driver.continue_(Continue(name="", words=words)).log_probability
    for k, word in enumerate(words):
        answered = replace(rows, responses=[word] * 3)
        means = driver.score(Score(data=answered)).mean
        # the long prompt is cut for the longest of the words
        same = slice(None) if k == 1 else slice(2)
        np.testing.assert_allclose(judged[same, k], -means[same], atol=1e-5)
