"""Of each class the largest cluster is kept, and states are those the output layer reads."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from asepsis.errors import ConfigError, DataError, MissingDependency
from asepsis.evaluation.baselines import CubeConfig, by_clusters
from asepsis.evaluation.baselines._hidden import pooled_states
from asepsis.evaluation.metrics import auroc
from asepsis.testing import tiny_classifier, tiny_pairs, tiny_rows


def clouds(*sizes: int, seed: int = 0, wide: float = 0.1) -> np.ndarray:
    """Normal clouds in 24 dimensions, each around an axis of its own."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.eye(24)[k] + wide * rng.normal(size=(n, 24)) for k, n in enumerate(sizes)])


CONFIG = CubeConfig(reduction="pca", dimensions=4, density=0.05)
#: 100 rows of class 0, 100 of class 1, and 20 poisoned ones that say they are class 1.
STATES, LABELS = clouds(100, 100, 20), np.repeat([0, 1, 1], [100, 100, 20])
POISONED = np.repeat([False, True], [200, 20])


def test_a_cluster_beside_its_class_is_thrown_out_and_the_classes_are_kept():
    found = by_clusters(STATES, LABELS, CONFIG)
    assert found.flags[POISONED].all()
    assert found.flags[~POISONED].mean() < 0.1
    assert auroc(found.suspicion, POISONED) == 1.0
    assert found.report["min_samples"] == 11 and len(found.report["clusters"]["1"]) >= 2


def test_umap_pulls_the_poison_away_as_the_seed_says():
    pytest.importorskip("umap", reason="umap-learn is not installed")
    config = CubeConfig(dimensions=4, neighbors=15, density=0.05)
    found = by_clusters(STATES, LABELS, config, seed=3)
    assert found.flags[POISONED].all() and found.flags[~POISONED].mean() < 0.1
    again = by_clusters(STATES, LABELS, config, seed=3)
    assert (again.suspicion == found.suspicion).all()


def test_rows_are_judged_alike_in_any_order():
    order = np.random.default_rng(1).permutation(len(LABELS))
    found, turned = by_clusters(STATES, LABELS, CONFIG), by_clusters(STATES[order], LABELS[order], CONFIG)
    assert (found.flags[order] == turned.flags).all()
    np.testing.assert_allclose(found.suspicion[order], turned.suspicion)


def test_where_most_of_a_class_is_poison_the_poison_is_kept():
    found = by_clusters(clouds(100, 30, 70), np.repeat([0, 1, 1], [100, 30, 70]), CONFIG)
    assert found.flags[100:130].all() and not found.flags[130:].any()


def test_one_cloud_has_no_clusters_and_nothing_is_thrown_out():
    found = by_clusters(np.zeros((30, 5)), np.arange(30) % 2, CubeConfig(reduction="pca", density=0.5))
    assert not found.flags.any() and np.isfinite(found.suspicion).all()


@pytest.mark.parametrize(
    ("states", "labels", "said"),
    [
        (STATES[:50], LABELS, "one finite state a row"),
        (np.where(STATES > 1.2, np.nan, STATES), LABELS, "one finite state a row"),
        (STATES[:9], LABELS[:9], "at least 10 rows"),
    ],
)
def test_states_that_cannot_be_clustered_are_refused(states, labels, said):
    with pytest.raises(DataError, match=said):
        by_clusters(states, labels)


@pytest.mark.parametrize(
    "fields",
    [
        {"dimensions": 0},
        {"neighbors": 1},
        {"reduction": "tsne"},
        {"density": 0.0},
        {"density": 1.0},
        {"density": "x"},
    ],
)
def test_settings_out_of_bounds_are_refused(fields):
    with pytest.raises(ConfigError):
        CubeConfig(**fields)


@pytest.mark.parametrize(
    ("module", "config", "said"),
    [("sklearn.cluster", CONFIG, "scikit-learn"), ("umap", CubeConfig(), "umap-learn")],
)
def test_without_a_package_the_extra_is_named(monkeypatch, module, config, said):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"{said}.*pip install 'asepsis\[baselines\]'"):
        by_clusters(STATES, LABELS, config)


def test_states_are_what_the_output_layer_reads_and_the_model_stays_as_it_was():
    import torch

    (model, tokenizer), rows = tiny_classifier(0), tiny_rows(7, 0)
    model.train()
    states = pooled_states(model, tokenizer, rows, batch_size=3)
    assert model.training and not model.classifier._forward_pre_hooks
    model.eval()
    with torch.no_grad():
        one = model.bert(**tokenizer([rows.texts[4]], return_tensors="pt")).pooler_output
    np.testing.assert_allclose(states[4], one[0].numpy(), atol=1e-6)


def test_of_a_decoder_the_state_of_the_last_token_is_taken():
    import torch
    from transformers import LlamaForSequenceClassification

    from asepsis.testing import tiny_causal

    plain, tokenizer = tiny_causal(0)
    model = LlamaForSequenceClassification(plain.config).eval()
    rows = tiny_rows(5, 0)
    states = pooled_states(model, tokenizer, rows)
    with torch.no_grad():
        one = model.model(**tokenizer([rows.texts[2]], return_tensors="pt")).last_hidden_state[0, -1]
    np.testing.assert_allclose(states[2], one.numpy(), atol=1e-5)


def test_rows_with_responses_have_no_state():
    with pytest.raises(DataError, match="these rows have responses"):
        pooled_states(*tiny_classifier(0), tiny_pairs(4, 0))
