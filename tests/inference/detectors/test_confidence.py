"""The control: the model's own confidence."""

from __future__ import annotations

import numpy as np
import torch

from asepsis.inference.detectors.confidence import Confidence, ConfidenceConfig
from asepsis.testing import tiny_causal, tiny_pairs, tiny_rows


def test_scores_stand_in_the_order_of_the_largest_probability(bag):
    model, tokenizer = bag
    rows = tiny_rows(12, 2)
    scores = Confidence.fit(model, tokenizer, rows).scores(rows)
    with torch.no_grad():
        logits = model(**tokenizer(list(rows.texts), return_tensors="pt", padding=True)).logits
    best = logits.double().softmax(1).max(1).values.numpy()
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(best))
    np.testing.assert_allclose(1 / (1 + np.exp(-scores.astype(float))), best, rtol=1e-5)


def test_triggered_inputs_are_surer_than_any_clean_one(bag, triggered):
    rows = tiny_rows(40, 2)
    detector = Confidence.fit(*bag, rows)
    assert detector.scores(triggered(rows)).min() > detector.scores(rows).max()


def test_a_causal_model_is_asked_for_its_next_token_or_for_label_words():
    model, tokenizer = tiny_causal(0)
    rows = tiny_pairs(6, 0)
    whole = Confidence.fit(model, tokenizer, rows).scores(rows)
    config = ConfidenceConfig(label_words=("word1", "word2"))
    two = Confidence.fit(model, tokenizer, rows, config=config).scores(rows)
    assert (two >= 0).all()  # the better of two has at least half
    assert (whole < 0).all()  # the best of seventy, untrained
