"""``asepsis export``: what comes out needs nothing of ours and says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import asepsis
from asepsis.cli import main
from asepsis.testing import tiny_classifier, tiny_rows
from asepsis.training.models import load_trained

DATA = tiny_rows(24, 0)


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        answer: torch.Tensor = model(**tokenizer(list(DATA.texts), return_tensors="pt", padding=True)).logits
    return answer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("export")
    base, tokenizer = tiny_classifier(0)
    base.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    run = asepsis.defend(
        str(home / "base"),
        DATA,
        defense=asepsis.MuscleloraConfig(scales=(1, 3)),
        clean_reference=tiny_rows(8, 1),
        settings=asepsis.Settings(max_steps=3, batch_size=8, device="cpu", learning_rate=1e-3),
    )
    return run.save_pretrained(home / "run")


def test_a_merged_checkpoint_loads_with_transformers_alone_and_says_the_same(
    run_folder: Path, tmp_path: Path
) -> None:
    assert main(["export", str(run_folder), "-o", str(tmp_path / "plain"), "--merge"]) == 0
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert "model.safetensors" in names and not {n for n in names if "adapter" in n or "asepsis" in n}
    adapted, tokenizer = load_trained(run_folder)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain, tokenizer), logits(adapted, tokenizer), rtol=1e-5, atol=1e-6)


def test_without_merging_the_adapter_travels_without_our_files(run_folder: Path, tmp_path: Path) -> None:
    assert main(["export", str(run_folder), "-o", str(tmp_path / "adapter")]) == 0
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.startswith("asepsis")]


@pytest.mark.parametrize("words", [["RUN", "-o", "RUN"], ["EMPTY", "-o", "OUT"]])
def test_an_existing_target_or_a_folder_without_a_model_is_refused(
    run_folder: Path, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run_folder), "EMPTY": str(tmp_path / "empty"), "OUT": str(tmp_path / "out")}
    assert main(["export", *(places.get(word, word) for word in words)]) == 2
    assert not (tmp_path / "out").exists()
