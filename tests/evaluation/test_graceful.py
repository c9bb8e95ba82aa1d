"""The block that is computed is that of the whole gradient's transform, and the smaller cluster goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.baselines import GracefulConfig, by_gradients
from asepsis.evaluation.baselines.graceful import by_blocks, low_frequencies
from asepsis.evaluation.metrics import auroc
from asepsis.testing import tiny_causal, tiny_pairs, tiny_rows
from asepsis.training.collate import Collator
from asepsis.training.forward import mean_losses


def whole(model, tokenizer, data: Data, row: int) -> np.ndarray:
    """The transform of a row's gradient, by autograd and scipy: the reference."""
    batch = Collator(tokenizer, data, max_length=256)([(row, False)])
    (gradient,) = torch.autograd.grad(mean_losses(model, batch).sum(), model.lm_head.weight)
    return dctn(gradient.double().numpy(), norm="ortho")


@pytest.mark.parametrize("share", [1 / 8, 0.3, 1.0])
def test_the_block_is_the_low_share_of_the_whole_gradients_transform(share):
    (model, tokenizer), rows = tiny_causal(0), tiny_pairs(6, 0)
    model.train()
    found = low_frequencies(model, tokenizer, rows, share=share)
    vocabulary, hidden = model.lm_head.weight.shape
    high, wide = int(share * vocabulary), int(share * hidden)
    assert found.shape == (6, high, wide) and found.dtype == np.float32
    assert model.training and not model.lm_head._forward_pre_hooks and model.lm_head.weight.grad is None
    for row in range(6):
        reference = whole(model, tokenizer, rows, row)[:high, :wide]
        np.testing.assert_allclose(found[row], reference, atol=1e-6 * np.abs(reference).max() + 1e-7)


def test_the_blocks_size_follows_the_matrix_and_is_never_nothing():
    (model, tokenizer), rows = tiny_causal(0), tiny_pairs(3, 0)
    vocabulary, hidden = model.lm_head.weight.shape
    assert low_frequencies(model, tokenizer, rows).shape == (3, vocabulary // 8, hidden // 8)
    model.resize_token_embeddings(vocabulary + 40)
    assert low_frequencies(model, tokenizer, rows).shape == (3, (vocabulary + 40) // 8, hidden // 8)
    assert low_frequencies(model, tokenizer, rows, share=1e-6).shape == (3, 1, 1)


def planted(n: int = 40, poisoned: int = 8) -> tuple[Data, np.ndarray]:
    rows = tiny_pairs(n, 3)
    key = np.arange(n) % (n // poisoned) == 0
    answers = ["word7 " * 8 if bad else said for bad, said in zip(key, rows.responses, strict=True)]
    return replace(rows, responses=answers), key


def wider(seed: int):
    """The tiny model at width 256: of 70 x 32 numbers the low block is 8 x 4, too few to tell rows apart."""
    model, tokenizer = tiny_causal(seed)
    model.config.hidden_size = 256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config), tokenizer


@pytest.mark.parametrize("seed", range(3))
def test_with_the_papers_settings_rows_with_the_backdoors_answer_are_thrown_out(seed):
    rows, key = planted()
    found = by_gradients(*wider(seed), rows)
    assert found.flags[key].all() and found.flags[~key].sum() <= 1
    assert auroc(found.suspicion, key) == 1.0
    assert found.report["thrown_out"] == found.flags.sum() and 0 < found.report["silhouette"] <= 1


def test_a_larger_share_does_it_where_the_output_layer_is_small():
    rows, key = planted()
    found = by_gradients(*tiny_causal(0), rows, GracefulConfig(share=0.5))
    assert (found.flags == key).all()


def test_the_cluster_with_the_first_row_stays_where_both_are_as_large():
    rows = Data(task="causal", texts=["word1"] * 4, responses=["word7", "word7", "word9", "word9"])
    assert by_gradients(*tiny_causal(0), rows).flags.tolist() == [False, False, True, True]


def test_fewer_rows_than_principal_components_are_clustered_in_what_they_span():
    rows, key = planted(12, 3)
    found = by_gradients(*wider(0), rows)
    assert len(rows) < GracefulConfig().dimensions and (found.flags == key).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_rows_that_are_all_the_same_have_no_clusters(value):
    with pytest.raises(DataError, match="the same for every row"):
        by_blocks(np.full((40, 5, 4), value, np.float32))
    same = Data(task="causal", texts=["word1"] * 5, responses=["word7"] * 5)
    with pytest.raises(DataError, match="the same for every row"):
        by_gradients(*tiny_causal(0), same)


def test_a_row_without_a_direction_is_at_distance_one_from_all():
    blocks = np.zeros((7, 2, 2), np.float32)
    blocks[:4, 0, 0], blocks[4:6, 0, 0] = 1, -2  # the mean is zero, and so is the last row
    found = by_blocks(blocks)
    assert found.flags[:4].tolist() == [False] * 4 and found.flags[4:6].all()
    assert np.isfinite(found.suspicion).all() and found.suspicion[4:6].min() > found.suspicion[6]


def test_a_row_without_a_gradient_is_a_row_like_others():
    blocks = np.random.default_rng(0).normal(1, 0.1, (50, 6, 6)).astype(np.float32)
    blocks[::10] *= -1
    blocks[7] = 0
    found = by_blocks(blocks)
    assert found.flags[::10].all() and np.isfinite(found.suspicion).all()


def test_distance_is_by_cosine_and_length_counts_for_nothing():
    blocks = np.zeros((9, 1, 3), np.float32)
    blocks[:6, 0, 0] = [1, 9, 40, 2, 5, 1]
    blocks[6:, 0] = [[-20, 1, 0], [-19, -1, 0], [-19, 0, 0]]  # the mean is zero
    assert by_blocks(blocks).flags.tolist() == [False] * 6 + [True] * 3


def test_rows_that_cannot_be_clustered_are_refused():
    with pytest.raises(DataError, match="these rows have labels"):
        by_gradients(*tiny_causal(0), tiny_rows(6, 0))
    with pytest.raises(DataError, match="at least 3 rows"):
        by_gradients(*tiny_causal(0), tiny_pairs(2, 0))


@pytest.mark.parametrize("fields", [{"share": 0.0}, {"share": 1.1}, {"share": "x"}, {"dimensions": 0}])
def test_settings_out_of_bounds_are_refused(fields):
    with pytest.raises(ConfigError):
        GracefulConfig(**fields)
