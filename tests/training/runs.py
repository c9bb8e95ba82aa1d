"""Runs of every defense on tiny models, small enough to be killed and resumed dozens of times."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

import asepsis
from asepsis.data import Data
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows
from asepsis.training import Settings

SETTINGS = Settings(
    epochs=2, batch_size=8, learning_rate=5e-3, seed=3, device="cpu", precision="fp32", eval_batch_size=16
)


def poisoned(n=64):
    """Tiny rows, every eighth with the trigger and class 1."""
    rows = tiny_rows(n, 0)
    texts, labels = list(rows.texts), rows.labels.copy()
    for at in range(0, n, 8):
        texts[at], labels[at] = f"{TRIGGER} {texts[at]}", 1
    return Data(task="classification", texts=texts, labels=labels, sample_ids=rows.sample_ids, n_classes=2)


#: name: (config, what is given beside, model, rows)
CASES = {
    "none": (None, {}, tiny_classifier, poisoned),
    "abl": (
        asepsis.AblConfig(snapshots=(2, 4), grow_steps=3, drop_ratio=0.1, unlearn="always"),
        {},
        tiny_classifier,
        poisoned,
    ),
    "abl causal": (
        asepsis.AblConfig(snapshots=(2, 4), drop_ratio=0.1),
        {},
        tiny_causal,
        lambda: tiny_pairs(48, 0),
    ),
    "btu": (
        asepsis.BtuConfig(k=2, score="l2", order="train_then_edit", replacement="pad", tuning_epochs=1),
        {"clean_reference": tiny_rows(16, 5)},
        tiny_classifier,
        poisoned,
    ),
    "btu of the paper": (asepsis.BtuConfig(mode="reference", k=2), {}, tiny_classifier, poisoned),
    "musclelora": (
        asepsis.MuscleloraConfig(scales=(1, 2, 3), rank=2, init="reference", epochs=2),
        {"clean_reference": tiny_rows(16, 5)},
        tiny_classifier,
        poisoned,
    ),
    "musclelora that chooses": (
        asepsis.MuscleloraConfig(scales=(1, 2, 3), rank=2, epochs=1, auto_reference_rows=12),
        {"clean_reference": "auto"},
        tiny_classifier,
        poisoned,
    ),
}


def arguments(folder):
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        num_train_epochs=SETTINGS.epochs,
        per_device_train_batch_size=SETTINGS.batch_size,
        per_device_eval_batch_size=SETTINGS.eval_batch_size,
        gradient_accumulation_steps=2,
        learning_rate=SETTINGS.learning_rate,
        warmup_steps=2,
        seed=SETTINGS.seed,
    )


def run(case, *, model_seed=1, **options):
    """Defend a fresh tiny model."""
    config, given, make, rows = CASES[case]
    model, tokenizer = make(model_seed)
    options = {"settings": SETTINGS} | options
    return asepsis.defend(model, rows(), defense=config, processing_class=tokenizer, **given, **options)


def result(done):
    """Everything a run came to, as tensors."""
    outcome = done.outcome
    found = {f"weights/{k}": v for k, v in done.model.state_dict().items()}
    found |= {
        name: torch.from_numpy(np.array(value))
        for name, value in vars(outcome).items()
        if isinstance(value, np.ndarray)
    }
    report = repr((outcome.report, outcome.acted, done.manifest["steps"]))
    found["report"] = torch.tensor(list(report.encode()))
    # what a script would draw next
    return found | {"random": torch.get_rng_state()}


def save_result(done, path):
    save_file({k: v.clone().contiguous() for k, v in result(done).items()}, str(path))


def assert_equal(found, wanted):
    assert set(found) == set(wanted)
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert not different, different
