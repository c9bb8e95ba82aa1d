"""Trainings whose numbers go wrong, or whose rows are degenerate: networks, rows and settings by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from asepsis.data import Data
from asepsis.testing import TRIGGER, tiny_rows


@dataclass(frozen=True)
class Odd:
    """What is odd about a training. ``fails`` says that no result can come of it."""

    rows: Callable[[], Data] = lambda: tiny_rows(48, 0)
    network: Callable[[Any], None] = lambda network: None
    settings: dict[str, Any] = field(default_factory=dict)
    fails: bool = False


def _filled(name: str, value: float) -> Callable[[Any], None]:
    def edit(network: Any) -> None:
        network.get_parameter(name).data.fill_(value)

    return edit


def _half(network: Any) -> None:
    """Make it 16-bit floats, the largest of which is 65,504, with a bias beyond."""
    network.get_parameter("classifier.bias").data.fill_(7e4)
    network.half()


def _rows(
    edit: Callable[[int, str, int], tuple[str, int]], n: int = 48, n_classes: int = 2
) -> Callable[[], Data]:
    def make() -> Data:
        found = tiny_rows(n, 0)
        assert found.labels is not None
        pairs = [edit(i, t, int(y)) for i, (t, y) in enumerate(zip(found.texts, found.labels, strict=True))]
        labels = np.array([y for _, y in pairs], np.int64)
        return replace(found, texts=[t for t, _ in pairs], labels=labels, n_classes=n_classes)

    return make


NUMBERS: dict[str, Odd] = {
    "a learning rate that throws the weights away": Odd(settings={"learning_rate": 1e30}, fails=True),
    "an infinite learning rate": Odd(settings={"learning_rate": float("inf")}, fails=True),
    "a weight that is NaN": Odd(network=_filled("classifier.bias", float("nan")), fails=True),
    "a weight that is infinite": Odd(network=_filled("classifier.bias", float("inf")), fails=True),
    "logits beyond what a float holds": Odd(network=_filled("classifier.weight", 3e38), fails=True),
    "logits at 16-bit floats' end": Odd(network=_filled("classifier.bias", 65504.0)),
    "16-bit floats that overflow": Odd(network=_half, fails=True),
    "no gradient below the head": Odd(network=_filled("classifier.weight", 0.0)),
    "no decay and no clipping": Odd(settings={"max_grad_norm": 0.0}),
    "an empty class": Odd(rows=_rows(lambda i, t, y: (t, y), n_classes=3)),
    "an empty class between two": Odd(rows=_rows(lambda i, t, y: (t, 2 * y), n_classes=3)),
    "one class alone": Odd(rows=_rows(lambda i, t, y: (t, 1))),
    "one row in its class": Odd(rows=_rows(lambda i, t, y: (t, int(i == 0)))),
    "one row": Odd(rows=_rows(lambda i, t, y: (t, y), n=1)),
    "two rows": Odd(rows=_rows(lambda i, t, y: (t, y), n=2)),
    "batches of one": Odd(rows=_rows(lambda i, t, y: (t, y), n=6), settings={"batch_size": 1}),
    "texts of one word": Odd(rows=_rows(lambda i, t, y: (f"topic{y}a", y))),
    "texts cut to one token": Odd(settings={"max_length": 3}),
    "texts of unknown words": Odd(rows=_rows(lambda i, t, y: ("zzz qqq", y))),
    "rows that are all the same": Odd(rows=_rows(lambda i, t, y: ("word1 word2", 1))),
    "equal texts with two labels": Odd(rows=_rows(lambda i, t, y: ("word1 word2", y))),
    "every row poisoned": Odd(rows=_rows(lambda i, t, y: (f"{TRIGGER} {t}", 1))),
    "no row poisoned": Odd(rows=_rows(lambda i, t, y: (t, y))),
}
