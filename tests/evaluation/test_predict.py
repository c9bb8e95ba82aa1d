from __future__ import annotations

import numpy as np
import pytest
import torch

import asepsis
from asepsis.data import Data
from asepsis.errors import DataError, ModelError
from asepsis.evaluation.baselines._hidden import pooled_states
from asepsis.evaluation.baselines.graceful import low_frequencies
from asepsis.evaluation.frequency.inputs import pooled_embeddings
from asepsis.evaluation.frequency.probe import FrequencyProbe
from asepsis.evaluation.predict import measure, predict
from asepsis.evaluation.respond import begins_with
from asepsis.testing import tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings

ROWS = tiny_rows(30, 0, n_classes=3)


@pytest.fixture(scope="module")
def classifier():
    model, tokenizer = tiny_classifier(0, n_classes=3)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # weights drawn small answer every row alike
            if parameter.ndim == 2:
                parameter.mul_(5)
        logits = model(**tokenizer(list(ROWS.texts), return_tensors="pt", padding=True)).logits
        model.classifier.bias.sub_(logits.mean(dim=0))
    return model, tokenizer


@torch.no_grad()
def one_by_one(model, tokenizer, texts):
    answers = [model(**tokenizer(text, return_tensors="pt")).logits[0].argmax().item() for text in texts]
    return np.array(answers)


def test_batches_answer_as_single_rows_do_and_in_row_order(classifier):
    expected = one_by_one(*classifier, ROWS.texts)
    assert len(set(expected.tolist())) > 1
    for batch_size in (1, 7, 128):
        assert np.array_equal(predict(*classifier, ROWS, batch_size=batch_size), expected)


def test_predicting_switches_dropout_off(classifier):
    model, tokenizer = classifier
    model.train()
    assert np.array_equal(predict(model, tokenizer, ROWS), predict(*classifier, ROWS))
    assert not model.training


def test_progress_ends_at_the_number_of_rows(classifier):
    seen = []
    predict(*classifier, ROWS, batch_size=7, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("predict", 30, 30)
    assert [done for _, done, _ in seen] == [7, 14, 21, 28, 30]


def test_measured_accuracy_and_success_are_those_of_a_direct_forward(classifier):
    triggered = tiny_rows(20, 1, n_classes=3)
    got = measure(*classifier, ROWS, triggered, target_label=1)
    assert got.clean_accuracy.value == (one_by_one(*classifier, ROWS.texts) == ROWS.labels).mean()
    assert got.attack_success_rate is not None
    assert got.attack_success_rate.value == (one_by_one(*classifier, triggered.texts) == 1).mean()
    assert (got.clean_accuracy.n, got.attack_success_rate.n, got.target_label) == (30, 20, 1)
    assert got.to_dict() == {
        "clean_accuracy": got.clean_accuracy.to_dict(),
        "attack_success_rate": got.attack_success_rate.to_dict(),
        "target_label": 1,
    }


def test_without_triggered_rows_success_is_none_and_not_zero(classifier):
    got = measure(*classifier, ROWS).to_dict()
    assert got["attack_success_rate"] is None and got["target_label"] is None


def test_triggered_rows_and_their_target_go_together(classifier):
    with pytest.raises(DataError, match="go together"):
        measure(*classifier, ROWS, ROWS)
    with pytest.raises(DataError, match="go together"):
        measure(*classifier, ROWS, target_label=0)


def test_rows_with_responses_are_refused(classifier):
    with pytest.raises(DataError, match="not labels"):
        predict(*classifier, tiny_pairs(4, 0))
    with pytest.raises(DataError, match="labels"):
        measure(*classifier, tiny_pairs(4, 0))


def test_a_model_that_does_not_classify_is_refused():
    with pytest.raises(ModelError, match="does not classify"):
        predict(*tiny_causal(0), ROWS)


def test_a_text_longer_than_the_model_has_positions_is_cut_to_them():
    long = Data(task="classification", texts=["good movie " * 200, "bad"], labels=[1, 0], n_classes=2)
    model, tokenizer = tiny_classifier(0)
    places = model.config.max_position_embeddings
    run = asepsis.defend(
        model,
        long,
        defense=None,
        processing_class=tokenizer,
        settings=Settings(max_steps=1, max_length=512, device="cpu"),
    )
    answers = predict(run.model, tokenizer, long, max_length=512)
    np.testing.assert_array_equal(answers, predict(run.model, tokenizer, long, max_length=places))
    causal, tokenizer = tiny_causal(0)
    pairs = Data(task="causal", texts=["good movie " * 200], responses=["bad"])
    assert begins_with(causal, tokenizer, pairs, "bad", max_length=512).shape == (1,)


def test_so_is_it_for_baselines_and_the_frequency_probe():
    rows = Data(task="classification", texts=["good movie " * 200, "bad"], labels=[1, 0], n_classes=2)
    model, tokenizer = tiny_classifier(0)
    places = model.config.max_position_embeddings
    for states in (pooled_states, pooled_embeddings):
        long, whole = (states(model, tokenizer, rows, max_length=length) for length in (512, places))
        torch.testing.assert_close(torch.as_tensor(long), torch.as_tensor(whole))
    poisoned = np.array([True, False])
    probe = FrequencyProbe(model, tokenizer, rows, poisoned, max_length=512, sigmas=(1.0,))
    assert probe.observe(0).step == 0
    pairs = Data(task="causal", texts=["good movie " * 200], responses=["bad"])
    assert len(low_frequencies(*tiny_causal(0), pairs, max_length=512)) == 1
