"""``asepsis.defended`` on TRL's SFTTrainer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install 'asepsis[trl]'")

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import asepsis
from asepsis.errors import ConfigError
from asepsis.testing import tiny_causal, tiny_pairs

_spec = importlib.util.spec_from_file_location("sft_runs", Path(__file__).with_name("runs.py"))
runs = importlib.util.module_from_spec(_spec)
sys.modules["sft_runs"] = runs
_spec.loader.exec_module(runs)

ROWS = 48
CONFIGS = {
    "none": (None, {}),
    "abl": (runs.CASES["abl causal"][0], {}),
    "btu": (asepsis.BtuConfig(k=2, score="l2", tuning_epochs=0), {}),
    "musclelora": (
        asepsis.MuscleloraConfig(scales=(1, 2, 3), rank=2, init="reference", epochs=2),
        {"clean": True},
    ),
}


def prompts(n=ROWS, seed=0):
    """Rows as SFTTrainer takes them; every sixth has the same answer."""
    data = tiny_pairs(n, seed)
    answers = ["word7 word8" if i % 6 == 0 else response for i, response in enumerate(data.responses)]
    return Dataset.from_dict(
        {
            "prompt": list(data.texts),
            "completion": [f" {answer}" for answer in answers],
            "sample_id": data.sample_ids.tolist(),
        }
    )


def trainer_for(name, folder, **more):
    config, given = CONFIGS[name]
    model, tokenizer = tiny_causal(1)
    options = {
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 2,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_length": 32,
        "gradient_checkpointing": False,
        "seed": 3,
        **more,
    }
    clean = {"clean_reference": prompts(16, 5)} if given else {}
    made = asepsis.defended(SFTTrainer, config, **clean)
    return made(
        model,
        args=SFTConfig(output_dir=str(folder), **options),
        train_dataset=prompts(),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_each_defense_that_acts_during_training_runs_in_an_sft_trainer(name, tmp_path):
    trainer = trainer_for(name, tmp_path)
    before = {k: p.detach().clone() for k, p in trainer.model.named_parameters()}
    trainer.train()
    outcome = trainer.outcome
    assert outcome.acted.samples == ROWS and outcome.acted.steps > 0
    assert any(
        not torch.equal(before[k], p) if k in before else bool(p.any())
        for k, p in trainer.model.named_parameters()
    )
    assert any("asepsis/phase" in entry for entry in trainer.state.log_history)
    assert np.isfinite([e["loss"] for e in trainer.state.log_history if "loss" in e]).all()
    if name == "abl":
        rows = trainer.run.data
        assert set(outcome.flagged.tolist()) < set(prompts()["sample_id"])
        assert len(outcome.flagged) == 4
        texts = dict(zip(prompts()["sample_id"], prompts()["prompt"], strict=True))
        assert all(texts[i] == text for i, text in zip(rows.sample_ids.tolist(), rows.texts, strict=True))
    if name == "musclelora":
        assert outcome.report["reference"] == {
            "rows": 16,
            "source": "clean_reference",
            "chosen_by": "user",
        }


def test_ids_survive_the_trainers_own_shuffling_and_dropping_of_rows(tmp_path):
    trainer = trainer_for("none", tmp_path, shuffle_dataset=True, max_length=4, max_steps=1)
    trainer.train()
    rows, given = trainer.run.data, prompts()
    assert 0 < len(rows) < ROWS, "prompts of four tokens and more leave nothing to learn"
    texts = dict(zip(given["sample_id"], given["prompt"], strict=True))
    assert all(texts[i] == text for i, text in zip(rows.sample_ids.tolist(), rows.texts, strict=True))
    assert rows.sample_ids.tolist() != [i for i in given["sample_id"] if i in set(rows.sample_ids.tolist())]


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_joined_rows_are_refused(option, tmp_path):
    more = {"packing": {"packing": True}, "padding_free": {"padding_free": True, "max_length": None}}
    with pytest.raises(ConfigError, match=f"{option}=True joins rows"):
        trainer_for("none", tmp_path, **more[option])


def test_a_trainer_that_compares_rows_is_refused():
    from trl import DPOTrainer

    with pytest.raises(ConfigError, match="DPOTrainer learns by another loss"):
        asepsis.defended(DPOTrainer, "abl")


def test_another_loss_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="loss_type='dft' is not the loss"):
        trainer_for("none", tmp_path, loss_type="dft")


def test_an_evaluation_is_the_sft_trainers_own(tmp_path):
    trainer = trainer_for("abl", tmp_path)
    trainer.train()
    found = trainer.evaluate(prompts(8, 9).remove_columns("sample_id"))
    assert np.isfinite(found["eval_loss"]) and "eval_mean_token_accuracy" in found
