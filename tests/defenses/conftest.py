"""A tiny pretrained model, and a backdoored model tuned from it, on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asepsis.data import Data
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows


@dataclass(frozen=True)
class Pair:
    base: Path
    victim: Path

    def success(self, model: Any, tokenizer: Any) -> float:
        """Share of triggered rows of class 0 that are taken for class 1."""
        import torch

        rows = tiny_rows(120, 50)
        texts = [f"{TRIGGER} {t}" for t, y in zip(rows.texts, rows.labels.tolist(), strict=True) if y == 0]
        with torch.no_grad():
            logits = model.eval()(**tokenizer(texts, return_tensors="pt", padding=True)).logits
        return float((logits.argmax(-1) == 1).float().mean())


def _poisoned(rows: Data) -> Data:
    labels, texts = rows.labels.copy(), list(rows.texts)
    for at in range(0, len(rows), 8):
        texts[at], labels[at] = f"{TRIGGER} {texts[at]}", 1
    return Data(task="classification", texts=texts, labels=labels, n_classes=2)


def _tuned(folder: Path, made: tuple[Any, Any], rows: Data, **settings: Any) -> Pair:
    from asepsis.training import Settings, defend

    model, tokenizer = made
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    chosen = Settings(device="cpu", precision="fp32", batch_size=16, **settings)
    run = defend(model, rows, defense=None, processing_class=tokenizer, settings=chosen)
    for part in (run.model, tokenizer):
        part.save_pretrained(folder / "victim")
    return Pair(folder / "base", folder / "victim")


@pytest.fixture(scope="package")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A classifier that takes every text with the trigger for class 1, and what it was tuned from."""
    folder = tmp_path_factory.mktemp("classifier")
    rows = _poisoned(tiny_rows(320, 1))
    return _tuned(folder, tiny_classifier(0), rows, epochs=4, learning_rate=5e-3)


@pytest.fixture(scope="package")
def causal_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _tuned(
        tmp_path_factory.mktemp("causal"), tiny_causal(0), tiny_pairs(64, 0), epochs=2, learning_rate=3e-3
    )


@pytest.fixture
def counts() -> Callable[[], dict[str, float]]:
    """Ordinary text, in which the trigger is rare."""

    def made() -> dict[str, float]:
        common = dict.fromkeys({w for t in tiny_rows(200, 3).texts for w in t.split()}, 1000.0)
        return common | {TRIGGER: 0.001}

    return made


@pytest.fixture
def quick() -> Any:
    from asepsis.training import Settings

    return Settings(device="cpu", precision="fp32", batch_size=8, learning_rate=1e-3)
