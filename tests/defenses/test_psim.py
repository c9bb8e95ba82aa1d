"""PSIM's script: what the module learns from, when it stops, and when it raises."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from asepsis.core.confidence import beyond_usual
from asepsis.core.phases import Acted, Continue, Outcome, Score
from asepsis.data import Data
from asepsis.defenses import load
from asepsis.defenses._psim_config import PsimConfig
from asepsis.defenses._psim_module import attach, kind_for, reattach, underlying
from asepsis.defenses._psim_scores import Question
from asepsis.defenses.base import Threat
from asepsis.defenses.psim import Psim
from asepsis.errors import CheckpointError, ConfigError, DefenseInert, MissingReference
from asepsis.inference.asking import Asker
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings, defend
from asepsis.training.loop import LoopDriver
from asepsis.training.models import room
from asepsis.training.purify import purify
from asepsis.training.scan import scan_data

KINDS = ("p_tuning", "prompt_tuning", "prefix_tuning", "lora")
SETTINGS = Settings(batch_size=16, max_length=16, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def tuned():
    """A classifier that knows its task."""
    model, tokenizer = tiny_classifier(0)
    chosen = replace(SETTINGS, epochs=3, learning_rate=5e-3)
    defend(model, tiny_rows(320, 1), defense=None, processing_class=tokenizer, settings=chosen)
    return model.eval(), tokenizer


def learn(model, tokenizer, clean, **fields):
    config = PsimConfig(**{"check_every": 1, "learning_rate": 1e-2, "hidden_size": 16, **fields})
    psim, question = Psim(config), Question.of(config, clean)
    module = attach(model, config, clean.task, seed=0)
    driver = LoopDriver(module, tokenizer, clean, replace(SETTINGS, batch_size=config.batch_size))

    def script():
        report = yield from psim.learn(model, module, question, clean, seed=0)
        return Outcome(acted=Acted(steps=report["steps"]), report=report)

    return module, driver, question, driver.run(script()).report


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_to_be_unsure_and_leaves_the_model_alone(tuned, kind):
    model, tokenizer = tuned
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clean = tiny_rows(160, 11)
    rate = 3e-2 if kind == "lora" else 1e-2
    module, driver, question, report = learn(
        model, tokenizer, clean, kind=kind, steps=160, learning_rate=rate
    )
    assert report["kind"] == kind and report["watch"]["end"] == "usable"
    assert report["watch"]["before"] > 0.9
    sure = question.confidence(driver.converse(question.ask(module, tiny_rows(60, 5))))
    assert float(np.quantile(sure, 0.95)) < 0.75
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_learns_only_where_it_is_asked_to(tuned, kind):
    model, tokenizer = tuned
    head = {n: p.clone() for n, p in model.named_parameters() if n.startswith("classifier")}
    for said in ("auto", "frozen", "trained"):
        module, _, _, _ = learn(
            model, tokenizer, tiny_rows(80, 11), kind=kind, head=said, steps=4, stop="never"
        )
        copies = {n: p for n, p in module.named_parameters() if ".modules_to_save." in n}
        assert len(copies) == len(head)
        same = [torch.equal(copies[n], p) for key, p in head.items() for n in copies if n.endswith(key[10:])]
        assert all(same) == (said == "frozen" or (said == "auto" and kind == "lora"))
        assert any(p.requires_grad for n, p in module.named_parameters() if n not in copies)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_comes_back_from_its_files_as_it_was(tuned, kind, tmp_path):
    model, tokenizer = tuned
    module = attach(model, PsimConfig(kind=kind, hidden_size=16), "classification", seed=3).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    module.save_pretrained(str(tmp_path), save_embedding_layers=False)
    again = reattach(model, tmp_path)
    encoded = tokenizer(tiny_rows(4, 0).texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.allclose(again(**encoded).logits, module(**encoded).logits, atol=1e-5)
    assert room(again, 64) == 64 - (0 if kind == "lora" else 5)


def test_broken_files_of_a_module_are_refused(tuned, tmp_path):
    model, _ = tuned
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        reattach(model, tmp_path)
    attach(model, PsimConfig(kind="lora"), "classification", seed=0).save_pretrained(
        str(tmp_path), save_embedding_layers=False
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        reattach(model, tmp_path)


def test_a_seed_draws_the_same_module_and_leaves_chance_alone(tuned):
    model, _ = tuned
    state = torch.get_rng_state()
    one, two, three = (attach(model, PsimConfig(), "classification", seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, three[name]) for name, value in one.items())


def test_under_an_adapter_the_module_stands_on_the_weights_as_they_came(tuned):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model, tokenizer = tuned
    encoded = tokenizer(tiny_rows(4, 0).texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = model(**encoded).logits
    for config in (
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    ):
        adapted = get_peft_model(tiny_copy(model), config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.5)
            base = underlying(adapted)
            assert torch.allclose(base(**encoded).logits, wanted, atol=1e-6)
            assert not torch.allclose(adapted.eval()(**encoded).logits, wanted, atol=1e-3)


def tiny_copy(model):
    other, _ = tiny_classifier(9)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_virtual_tokens_are_refused_where_a_decoder_classifies():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    decoder = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=80, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    assert kind_for(decoder, PsimConfig(), "classification") == "lora"
    with pytest.raises(ConfigError, match="hides from a classifying decoder"):
        kind_for(decoder, PsimConfig(kind="p_tuning"), "classification")
    assert kind_for(tiny_classifier(0)[0], PsimConfig(kind="p_tuning"), "classification") == "p_tuning"
    assert kind_for(tiny_causal(0)[0], PsimConfig(), "causal") == "lora"


def test_a_module_that_stays_sure_is_an_error_that_says_what_was_reached(tuned):
    model, tokenizer = tuned
    with pytest.raises(
        DefenseInert,
        match=r"still sure of clean rows after 2 steps .*raise steps or learning_rate, or draw labels anew",
    ):
        learn(model, tokenizer, tiny_rows(80, 11), steps=2, learning_rate=1e-5)


def test_without_a_stop_rule_the_module_trains_to_the_end(tuned):
    model, tokenizer = tuned
    _, _, _, report = learn(
        model, tokenizer, tiny_rows(80, 11), stop="never", epochs=2, batch_size=16, learning_rate=1e-5
    )
    assert report["steps"] == 2 * 4 and report["watch"]["end"] == "running"  # 60 rows in batches of 16
    assert [seen["step"] for seen in report["watch"]["seen"]] == list(range(1, 9))


def test_a_model_that_has_not_learned_the_task_is_refused():
    model, tokenizer = tiny_classifier(3)
    with pytest.raises(DefenseInert, match="unsure of clean rows without a module"):
        learn(model, tokenizer, tiny_rows(80, 0))


@pytest.fixture(scope="module")
def speaker():
    """A causal LM that answers with the class of the topic."""
    rows = tiny_rows(240, 1)
    words = ["word1", "word2"]
    data = Data(task="causal", texts=rows.texts, responses=[words[y] for y in rows.labels])
    model, tokenizer = tiny_causal(0)
    chosen = replace(SETTINGS, epochs=6, learning_rate=5e-3)
    defend(model, data, defense=None, processing_class=tokenizer, settings=chosen)
    return model.eval(), tokenizer, data


@pytest.mark.parametrize("kind", ["lora", "prefix_tuning"])
def test_a_causal_model_becomes_unsure_among_its_verbalizers(speaker, kind):
    model, tokenizer, data = speaker
    module, driver, question, report = learn(
        model, tokenizer, data.select(range(160)), kind=kind, steps=150, learning_rate=3e-2, unsure=0.75
    )
    assert question.words == ("word1", "word2") and report["answers"] == "verbalizers"
    asked = driver.converse(question.ask(module, data.select(range(160, 200))))
    assert asked.shape == (40, 2)
    assert question.confidence(asked).mean() < report["watch"]["before"] - 0.1
    # by default verbalizers are compared with what is usual for each, and the stop rule is not
    settled = question.among(report)
    assert len(settled.usual) == 2 and question.usual == ()
    np.testing.assert_allclose(settled.suspicion(asked), beyond_usual(asked, settled.usual))
    np.testing.assert_array_equal(settled.confidence(asked), question.confidence(asked))


@pytest.mark.parametrize(
    ("fields", "answers", "wanted"),
    [
        ({}, "verbalizers", True),
        ({}, "classes", False),
        ({"by_class": "always"}, "classes", True),
        ({"by_class": "never"}, "verbalizers", False),
        ({"threshold": "reference"}, "verbalizers", False),
        ({"score": "margin"}, "verbalizers", False),
    ],
)
def test_when_a_confidence_is_compared_by_class(fields, answers, wanted):
    assert Question(PsimConfig(**fields), answers, 2).by_class is wanted
    assert not Question(PsimConfig(**fields), "free", 0).by_class


def test_a_multiple_of_the_usual_confidence_takes_no_threshold_of_the_authors():
    with pytest.raises(ConfigError, match="needs score='confidence' and threshold='conformal'"):
        PsimConfig(by_class="always", threshold="reference")


def test_free_answers_have_no_class_to_be_compared_by():
    rows = tiny_pairs(20, 0)
    assert Question.of(PsimConfig(answers="free"), rows).answers == "free"
    for wrong in ({"by_class": "always"}, {"threshold": "reference"}, {"score": "energy"}):
        with pytest.raises(ConfigError, match="answers are free"):  # before anything is trained or decoded
            Question.of(PsimConfig(answers="free", **wrong), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_tokens_do_not_shift_what_is_read(speaker, kind):
    model, tokenizer, data = speaker
    module = attach(model, PsimConfig(kind=kind, hidden_size=16), "causal", seed=0).eval()
    few = data.select(range(6))
    driver = LoopDriver(module, tokenizer, few, SETTINGS)
    question = Question(PsimConfig(answers="free", tokens=3), "free", 0)
    losses = driver.score(Score(data=few))
    said = driver.continue_(Continue(name="", tokens=3, data=few)).log_probability
    ahead = 0 if kind in ("lora", "prefix_tuning") else 5
    for at, (text, response) in enumerate(zip(few.texts, few.responses, strict=True)):
        prompt = tokenizer(text).input_ids
        whole = torch.tensor([prompt + tokenizer(f" {response}").input_ids + [tokenizer.eos_token_id]])
        with torch.no_grad():
            logs = module(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0].log_softmax(-1)
        places = range(len(prompt), whole.shape[1])
        wanted = -sum(float(logs[ahead + p - 1, whole[0, p]]) for p in places)
        assert float(losses.total[at]) == pytest.approx(wanted, abs=1e-3)
        assert said[at, 0] == pytest.approx(float(logs[ahead + len(prompt) - 1].max()), abs=1e-3)
    assert question.suspicion(driver.converse(question.ask(module, few))).shape == (6,)


def test_a_free_answer_loses_its_fluency(speaker):
    model, tokenizer, data = speaker
    module, driver, question, report = learn(
        model, tokenizer, data, answers="free", skip=0, tokens=3, steps=150, learning_rate=3e-2, fall=0.9
    )
    assert report["kind"] == "lora" and report["watch"]["end"] == "usable"
    sure = question.suspicion(driver.converse(question.ask(module, data.select(range(40)))))
    assert sure.shape == (40,) and sure.mean() < report["watch"]["before"]


def test_psim_names_its_paper_and_its_threat():
    kind = load("psim")
    assert kind is Psim and kind.threat is Threat.WEIGHTS and kind.paper.arxiv == "2402.12168"
    text = (sys.modules[kind.__module__].__doc__ or "").lower()
    assert "deviations" in text and "when not to trust it" in text


def test_training_and_repair_point_to_the_guard(tuned, tmp_path):
    model, tokenizer = tuned
    with pytest.raises(ConfigError, match=r"asepsis\.Guard\.fit"):
        defend(model, tiny_rows(20, 0), defense="psim", processing_class=tokenizer)
    with pytest.raises(ConfigError, match=r"asepsis guard fit"):
        purify(tmp_path, base=tmp_path, defense="psim")


def test_a_scan_calibrates_on_the_half_it_did_not_learn_from(tuned):
    model, tokenizer = tuned
    config = PsimConfig(kind="p_tuning", check_every=1, learning_rate=1e-2, hidden_size=16)
    found = scan_data(
        tiny_rows(60, 4),
        method=config,
        model=model,
        processing_class=tokenizer,
        clean=tiny_rows(120, 5),
        target_fpr=0.05,
        settings=SETTINGS,
    )
    assert found.method == "psim" and np.isfinite(found.suspicion).all() and found.suspicion.shape == (60,)
    assert found.manifest["report"]["rows"] == 45  # 60 learned, a quarter of them watched
    for n, wanted in (
        (60, r"at least 99 clean rows, got 30"),
        (38, r"at least 19 clean rows|at least 40; got 38"),
    ):
        with pytest.raises(MissingReference, match=wanted):
            scan_data(
                tiny_rows(20, 4),
                method=config,
                model=model,
                processing_class=tokenizer,
                clean=tiny_rows(n, 5),
                target_fpr=0.01 if n == 60 else 0.05,
                settings=SETTINGS,
            )
    with pytest.raises(MissingReference, match="at least 40; got 0 clean rows"):
        scan_data(tiny_rows(20, 4), method=config, model=model, processing_class=tokenizer, settings=SETTINGS)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"warmup": 1.0}, "warmup"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"unsure": 0.5}, "unsure must lie"),
        ({"fall": 1.0}, "fall must lie"),
        ({"kind": "adapter"}, r"PsimConfig\.kind"),
        ({"threshold": "reference", "score": "energy"}, "is a confidence"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        PsimConfig(**fields)


def test_the_learning_rate_follows_the_kind_unless_given():
    assert PsimConfig().rate("lora") < PsimConfig().rate("p_tuning")
    assert PsimConfig(learning_rate=2e-5).rate("lora") == 2e-5
    again = PsimConfig.from_dict(json.loads(json.dumps(PsimConfig(kind="lora", epochs=2.0).to_dict())))
    assert again == PsimConfig(kind="lora", epochs=2.0)


def test_a_saved_question_keeps_what_is_usual():
    question = Question(PsimConfig(), "verbalizers", 2, (" no", " yes"), (0.1, 0.2))
    state = Asker(question=question, max_length=64, batch_size=8, precision="fp32").state()
    again = json.loads(json.dumps(state))
    assert Asker.from_state(again).question == question
    assert Asker.from_state({**again, "usual": []}).question.usual == ()
    with pytest.raises(CheckpointError, match="2 classes have 1 usual"):
        Asker.from_state({**again, "usual": [0.1]})
