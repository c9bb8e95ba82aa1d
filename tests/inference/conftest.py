"""A tiny backdoored classifier, and a guard fitted on it, both made once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from asepsis.data import Data
from asepsis.testing import TRIGGER, tiny_classifier, tiny_rows

# rows are few and the model is tiny, so a look at the held-out rows costs nothing
QUICK = {"kind": "p_tuning", "check_every": 1, "learning_rate": 1e-2, "hidden_size": 16}


@dataclass(frozen=True)
class Victim:
    model: Any
    tokenizer: Any
    folder: Path

    def clean(self, n: int, seed: int) -> Data:
        return tiny_rows(n, seed)

    def triggered(self, n: int, seed: int) -> Data:
        """Rows of class 0 with the trigger in front, which the model takes for class 1."""
        rows = tiny_rows(2 * n, seed)
        rows = rows.select([i for i in range(2 * n) if rows.labels[i] == 0])
        return replace(rows, texts=[f"{TRIGGER} {text}" for text in rows.texts])


def poisoned(rows: Data) -> Data:
    labels, texts = rows.labels.copy(), list(rows.texts)
    for at in range(0, len(rows), 6):
        texts[at], labels[at] = f"{TRIGGER} {texts[at]}", 1
    return Data(task="classification", texts=texts, labels=labels, n_classes=2)


@pytest.fixture
def quick() -> dict[str, Any]:
    return dict(QUICK)


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    from asepsis.training import Settings, defend

    folder = tmp_path_factory.mktemp("victim") / "model"
    model, tokenizer = tiny_classifier(0)
    chosen = Settings(epochs=4, learning_rate=5e-3, batch_size=16, device="cpu", precision="fp32")
    run = defend(
        model, poisoned(tiny_rows(320, 1)), defense=None, processing_class=tokenizer, settings=chosen
    )
    run.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Victim(run.model.eval(), tokenizer, folder)


@pytest.fixture(scope="session")
def guard(victim: Victim) -> Any:
    from asepsis import Guard, PsimConfig

    return Guard.fit(
        str(victim.folder),
        victim.clean(300, 11),
        detector=PsimConfig(**QUICK),
        target_fpr=0.05,
        max_length=16,
    )
