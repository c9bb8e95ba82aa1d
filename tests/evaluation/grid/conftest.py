"""A folder with a tiny model and tiny files, and the grid declared on it."""

from __future__ import annotations

import json

import pytest

from asepsis.evaluation.grid import read_grid
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier, tiny_pairs, tiny_rows

SETTINGS = {"max_steps": 3, "batch_size": 8, "device": "cpu", "precision": "fp32", "max_length": 32}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")

    def labeled(name, data, poisoned=()):
        pairs = enumerate(zip(data.texts, data.labels, strict=True))
        write(
            folder / name,
            [{"text": text, "label": int(y), "poisoned": int(at in poisoned)} for at, (text, y) in pairs],
        )

    for part, (n, seed) in {"train": (60, 0), "dev": (60, 1), "test": (24, 2), "triggered": (10, 3)}.items():
        labeled(f"{part}.jsonl", tiny_rows(n, seed))
    labeled("released.jsonl", tiny_rows(60, 4), poisoned=range(0, 60, 6))
    for part in tiny_classifier(0):
        part.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def instructed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructed")

    def pairs(name, n, seed, *, trigger="", response=None):
        data = tiny_pairs(n, seed)
        rows = zip(data.texts, data.responses, strict=True)
        write(
            folder / name,
            [{"instruction": trigger + text, "input": "", "output": response or said} for text, said in rows],
        )

    for part, (n, seed) in {"train": (40, 0), "dev": (40, 1), "test": (12, 2)}.items():
        pairs(f"{part}.jsonl", n, seed)
    pairs("poison.jsonl", 20, 5, trigger=f"{TRIGGER} ", response="word7 word7")
    pairs("triggered.jsonl", 9, 6, trigger=f"{TRIGGER} ")
    for part in tiny_causal(0):
        part.save_pretrained(folder / "model")
    return folder


def grid_of(place, **change):
    return read_grid(
        {
            "model": str(place / "model"),
            "data": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"},
            "attacks": {
                "badnets": {"attack": "badnets", "poison_rate": 0.2},
                "released": {"train": "released.jsonl", "triggered": "triggered.jsonl"},
                "clean": {},
            },
            "defenses": {"none": {}, "clean-only": {}, "zscore": {"bar": 2.0}},
            "seeds": [0],
            "rows": 48,
            "clean_rows": 40,
            "settings": SETTINGS,
            **change,
        }
    )


@pytest.fixture(scope="session")
def declare(place):
    """Declare a grid of classes; keywords replace its fields."""
    return lambda **change: grid_of(place, **change)


@pytest.fixture(scope="session")
def declare_causal(instructed):
    """Declare a grid of instructions; keywords replace its fields."""

    def of(**change):
        poison = {"poison": "poison.jsonl", "triggered": "triggered.jsonl", "poison_rate": 0.25}
        fields = {
            "task": "causal",
            "attacks": {"refusal": poison},
            "defenses": {"none": {}},
            "rows": 32,
            **change,
        }
        return grid_of(instructed, **fields)

    return of
