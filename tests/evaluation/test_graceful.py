"""The corner that is computed is the corner of the whole gradient's transform, and the smaller cluster goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.baselines import GracefulConfig, by_gradients
from asepsis.evaluation.baselines.graceful import low_frequencies
from asepsis.evaluation.metrics import auroc
from asepsis.testing import tiny_causal, tiny_pairs, tiny_rows
from asepsis.training.collate import Collator
from asepsis.training.forward import mean_losses


def whole(model, tokenizer, data: Data, row: int) -> np.ndarray:
    """The transform of a row's gradient, by autograd and scipy: the reference."""
    batch = Collator(tokenizer, data, max_length=256)([(row, False)])
    (gradient,) = torch.autograd.grad(mean_losses(model, batch).sum(), model.lm_head.weight)
    return dctn(gradient.double().numpy(), norm="ortho")


def test_the_corner_is_that_of_the_whole_gradients_transform():
    (model, tokenizer), rows = tiny_causal(0), tiny_pairs(6, 0)
    model.train()
    found = low_frequencies(model, tokenizer, rows, corner=9)
    assert found.shape == (6, 9, 9)
    assert model.training and not model.lm_head._forward_pre_hooks and model.lm_head.weight.grad is None
    for row in range(6):
        reference = whole(model, tokenizer, rows, row)[:9, :9]
        np.testing.assert_allclose(found[row], reference, atol=1e-6 * np.abs(reference).max() + 1e-7)


def test_a_side_shorter_than_the_corner_is_kept_whole():
    (model, tokenizer), rows = tiny_causal(0), tiny_pairs(3, 0)
    found = low_frequencies(model, tokenizer, rows, corner=48)
    assert found.shape == (3, 48, model.config.hidden_size)
    np.testing.assert_allclose(found[1], whole(model, tokenizer, rows, 1)[:48], atol=1e-6)


def planted(n: int = 40, poisoned: int = 8) -> tuple[Data, np.ndarray]:
    rows = tiny_pairs(n, 3)
    key = np.arange(n) % (n // poisoned) == 0
    answers = ["word7 word7 word7" if bad else said for bad, said in zip(key, rows.responses, strict=True)]
    return replace(rows, responses=answers), key


def test_rows_with_the_backdoors_answer_are_the_smaller_cluster():
    rows, key = planted()
    found = by_gradients(*tiny_causal(0), rows)
    assert (found.flags == key).all()
    assert auroc(found.suspicion, key) == 1.0
    assert found.report["thrown_out"] == 8 and 0 < found.report["silhouette"] <= 1


def test_the_cluster_with_the_first_row_stays_where_both_are_as_large():
    rows = Data(task="causal", texts=["word1"] * 4, responses=["word7", "word7", "word9", "word9"])
    assert by_gradients(*tiny_causal(0), rows).flags.tolist() == [False, False, True, True]


def test_rows_that_cannot_be_clustered_are_refused():
    with pytest.raises(DataError, match="these rows have labels"):
        by_gradients(*tiny_causal(0), tiny_rows(6, 0))
    with pytest.raises(DataError, match="at least 3 rows"):
        by_gradients(*tiny_causal(0), tiny_pairs(2, 0))


@pytest.mark.parametrize("fields", [{"corner": 0}, {"dimensions": 0}, {"corner": 1.5}])
def test_settings_out_of_bounds_are_refused(fields):
    with pytest.raises(ConfigError):
        GracefulConfig(**fields)
