"""What every detector here keeps to: scores that depend on the input alone, a model handed back as it was lent."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asepsis.errors import CheckpointError, ConfigError, DataError
from asepsis.inference.detectors import available, load
from asepsis.testing import TRIGGER, tiny_causal, tiny_pairs, tiny_rows

NAMES = ["onion", "rap", "strip"]
ODD = ["", "   \n", "word1", TRIGGER, "é漢字🙂\u200d \u00a0 word2", "word3\n\nword4 topic0a", "x" * 500]


@pytest.fixture
def language_model(tmp_path):
    """A folder with a random language model, so that nothing large is loaded."""
    for part in tiny_causal(1):
        part.save_pretrained(tmp_path / "lm")
    return str(tmp_path / "lm")


@pytest.fixture
def fitted(bag, language_model):
    def made(name, seed=0, **options):
        settings = {"onion": {"language_model": language_model}, "rap": {"steps": 40, "step_rows": 8}}.get(
            name, {}
        )
        kind = load(name)
        clean = tiny_rows(48, 1)
        return kind.fit(*bag, clean, config=kind.config_type(**settings), seed=seed, **options)

    return made


def test_the_baselines_are_in_the_registry():
    assert set(NAMES) <= set(available())
    assert not [name for name in available() if name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_one_finite_number_a_row_whatever_the_text(name, fitted, texts):
    detector = fitted(name)
    scores = detector.scores(texts(*ODD))
    assert detector.name == name
    assert scores.dtype == np.float32 and scores.shape == (len(ODD),)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_neither_on_the_batch_nor_on_the_order_nor_on_labels(name, fitted, texts):
    rows = tiny_rows(13, 2)
    whole = fitted(name).scores(rows)
    assert len({*whole.tolist()}) > 3
    np.testing.assert_allclose(fitted(name, batch_size=1).scores(rows), whole, rtol=1e-5, atol=1e-6)
    backwards = fitted(name, batch_size=5).scores(texts(*rows.texts[::-1]))
    np.testing.assert_allclose(backwards[::-1], whole, rtol=1e-5, atol=1e-6)
    alone = [fitted(name).scores(texts(text))[0] for text in rows.texts[:3]]
    np.testing.assert_allclose(alone, whole[:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores_bit_for_bit(name, fitted):
    rows = tiny_rows(8, 2)
    first = fitted(name, seed=3).scores(rows)
    np.testing.assert_array_equal(fitted(name, seed=3).scores(rows), first)
    assert (fitted(name, seed=4).scores(rows) != first).any() == (name in ("rap", "strip"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_handed_back_as_it_was(name, training, fitted, bag):
    model, _ = bag
    model.train(training)
    before = model.words.weight.detach().clone()
    chance = torch.get_rng_state()
    fitted(name).scores(tiny_rows(6, 2))
    assert torch.equal(model.words.weight, before)
    assert model.words.weight.grad is None and model.words.weight.requires_grad
    assert all(module.training == training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_detector_scores_the_same(name, fitted, bag, tmp_path):
    detector = fitted(name, max_length=16)
    detector.save(tmp_path)
    state = json.loads(json.dumps(detector.state(), allow_nan=False))
    rows = tiny_rows(6, 2)
    again = load(name).load(tmp_path, state, *bag)
    np.testing.assert_array_equal(again.scores(rows), detector.scores(rows))
    assert again.state() == detector.state() and again.report() == detector.report()
    json.dumps(detector.report(), allow_nan=False)
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} <= {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["rap", "strip"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_missing_or_broken_file_is_said(name, content, fitted, bag, tmp_path):
    detector = fitted(name)
    detector.save(tmp_path)
    (file,) = (path for path in tmp_path.iterdir() if path.is_file())
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(CheckpointError, match="fit the guard again"):
        load(name).load(tmp_path, detector.state(), *bag)


@pytest.mark.parametrize("name", ["rap", "strip"])
def test_rows_of_another_task_are_refused(name, fitted):
    with pytest.raises(DataError, match="for the task 'causal'"):
        fitted(name).scores(tiny_pairs(2, 0))


@pytest.mark.parametrize(("option", "names"), [("max_length", ["strip"]), ("batch_size", ["rap", "strip"])])
def test_limits_below_one_are_refused(option, names, fitted):
    for name in names:
        with pytest.raises(ConfigError, match=f"{option} must be at least 1, got 0"):
            fitted(name, **{option: 0})


@pytest.mark.parametrize("name", NAMES)
def test_the_module_says_its_paper_its_deviations_its_cost_and_when_not_to_trust_it(name):
    import sys

    said = sys.modules[load(name).__module__].__doc__ or ""
    assert "When not to trust it" in said and "forward pass" in said
    assert "arXiv" in said and "Deviations" in said


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described_and_nothing_else(name):
    import dataclasses
    import re

    kind = load(name).config_type
    described = re.findall(r"^    ([a-z_, ]+) : ", kind.__doc__ or "", flags=re.MULTILINE)
    assert {n.strip() for names in described for n in names.split(",")} == {
        field.name for field in dataclasses.fields(kind)
    }
