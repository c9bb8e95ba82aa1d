from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asepsis.core.manifest import MANIFEST, ROWS
from asepsis.core.phases import Acted, Outcome
from asepsis.errors import CheckpointError
from asepsis.testing import tiny_causal, tiny_classifier, tiny_rows
from asepsis.training.checkpoint import save_run, versions
from asepsis.training.models import load_trained

DATA = tiny_rows(4, 0)
OUTCOME = Outcome(
    acted=Acted(samples=4),
    suspicion=np.array([0.5, np.nan, -1.0, 2.0], np.float32),
    flagged=DATA.sample_ids[[3]],
    isolated=DATA.sample_ids[[0, 3]],
)


def save(folder, model=None, tokenizer=None, manifest=None):
    if model is None:
        model, tokenizer = tiny_classifier(0)
    return save_run(folder, model, tokenizer, manifest or {"format": 1}, OUTCOME, DATA)


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(list(DATA.texts), padding=True, return_tensors="pt")).logits


def test_transformers_alone_reads_it_back_with_the_same_logits(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = tiny_classifier(4)
    folder = save(tmp_path / "out", model, tokenizer)
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(again, AutoTokenizer.from_pretrained(folder)), logits(model, tokenizer))
    assert not list(folder.glob("*.bin"))


@pytest.mark.parametrize("make", [tiny_classifier, tiny_causal])
def test_load_trained_reads_a_full_checkpoint_of_either_kind(make, tmp_path):
    model, tokenizer = make(4)
    again, its_tokenizer = load_trained(save(tmp_path / "out", model, tokenizer))
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(logits(again, its_tokenizer), logits(model, tokenizer))


def test_load_trained_puts_an_adapter_on_its_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    base, tokenizer = tiny_classifier(4)
    save(tmp_path / "base", base, tokenizer)
    reloaded, tokenizer = load_trained(tmp_path / "base")
    model = get_peft_model(
        reloaded, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    )
    manifest = {"model": str(tmp_path / "base"), "n_classes": 2}
    folder = save(tmp_path / "adapter", model, tokenizer, manifest)
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    again, its_tokenizer = load_trained(folder)
    assert torch.equal(logits(again, its_tokenizer), logits(model, tokenizer))
    assert not torch.equal(
        logits(again, its_tokenizer), logits(load_trained(tmp_path / "base")[0], tokenizer)
    )


def test_the_manifest_and_the_rows_are_json(tmp_path):
    folder = save(tmp_path / "out", manifest={"format": 1, "versions": versions()})
    assert json.loads((folder / MANIFEST).read_text())["versions"]["torch"]
    rows = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == DATA.sample_ids.tolist()
    assert [row["suspicion"] for row in rows] == [0.5, None, -1.0, 2.0]
    assert [row["flagged"] for row in rows] == [False, False, False, True]
    assert [row["isolated"] for row in rows] == [True, False, False, True]


def test_a_failure_in_the_middle_leaves_nothing_new(tmp_path):
    with pytest.raises(TypeError):
        save(tmp_path / "out", manifest={"broken": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_the_earlier_run(tmp_path):
    save(tmp_path / "out", manifest={"format": 1, "run": "first"})
    with pytest.raises(TypeError):
        save(tmp_path / "out", manifest={"broken": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["run"] == "first"


def test_an_earlier_run_is_replaced_whole(tmp_path):
    folder = save(tmp_path / "out")
    (folder / "stale.txt").write_text("left over")
    save(tmp_path / "out", manifest={"format": 1, "run": "second"})
    assert not (folder / "stale.txt").exists()
    assert json.loads((folder / MANIFEST).read_text())["run"] == "second"


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not written by asepsis"):
        save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_parents_are_made_and_an_empty_folder_is_taken(tmp_path):
    assert (save(tmp_path / "a" / "b") / MANIFEST).exists()
    (tmp_path / "empty").mkdir()
    assert (save(tmp_path / "empty") / MANIFEST).exists()
