"""A classifier and a language model simple enough to be computed by hand, with a trigger that dominates them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from asepsis.data import Data
from asepsis.testing import TRIGGER, tiny_causal, tiny_classifier


class BagOfWords(nn.Module):
    """Logits are the sum of the words' rows."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(rows, freeze=False)
        self.config = SimpleNamespace(pad_token_id=0, num_labels=2)
        self.seen: list[int] = []  # rows of each forward pass

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.seen.append(len(input_ids))
        return SimpleNamespace(logits=(self.words(input_ids) * attention_mask[:, :, None]).sum(1))


class Unigram(nn.Module):
    """A language model that expects every word the same way wherever it stands."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.config = SimpleNamespace(max_position_embeddings=64)
        self.seen: list[tuple[int, int]] = []  # shape of each forward pass

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.seen.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


@pytest.fixture
def bag() -> tuple[BagOfWords, Any]:
    """A classifier: topic words say their class, the trigger says class 1 louder than anything."""
    _, tokenizer = tiny_classifier(0)
    rows = 2 + 0.1 * torch.randn(len(tokenizer), 2, generator=torch.Generator().manual_seed(0))
    for word, at in tokenizer.get_vocab().items():
        if word.startswith("topic"):
            rows[at] = torch.tensor([3.0, 1.0]) if word[5] == "0" else torch.tensor([1.0, 3.0])
    rows[tokenizer.convert_tokens_to_ids(TRIGGER)] = torch.tensor([0.0, 30.0])
    return BagOfWords(rows).eval(), tokenizer


@pytest.fixture
def unigram() -> tuple[Unigram, Any]:
    """A language model that knows every word but the trigger."""
    _, tokenizer = tiny_causal(0)
    logits = torch.zeros(len(tokenizer))
    logits[tokenizer.convert_tokens_to_ids(TRIGGER)] = -6.0
    return Unigram(logits).eval(), tokenizer


@pytest.fixture
def texts() -> Callable[..., Data]:
    """Rows made up of texts alone; what labels or responses they have is not read."""

    def made(*given: str, task: str = "classification") -> Data:
        if task == "causal":
            return Data(task="causal", texts=given, responses=["word0"] * len(given))
        return Data(task="classification", texts=given, labels=np.zeros(len(given), np.int64), n_classes=2)

    return made


@pytest.fixture
def triggered() -> Callable[[Data], Data]:
    """Put the trigger into the middle of every row of class 0."""

    def made(rows: Data) -> Data:
        assert rows.labels is not None
        own = rows.select(np.flatnonzero(rows.labels == 0))
        words = [text.split() for text in own.texts]
        given = [" ".join([*w[: len(w) // 2], TRIGGER, *w[len(w) // 2 :]]) for w in words]
        return Data(task="classification", texts=given, labels=np.zeros(len(given), np.int64), n_classes=2)

    return made
