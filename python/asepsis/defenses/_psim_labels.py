"""Rows whose answers say nothing: what PSIM's module learns from."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np

from asepsis.data import Data
from asepsis.defenses._psim_config import Answers
from asepsis.errors import DefenseInert

Scheme = Literal["uniform_fixed", "uniform_per_epoch", "permute"]

# responses that take no more values than this, each often, are class names
_MOST_VERBALIZERS = 16
_ROWS_EACH = 8
# free responses change places with others of like length, so that length stays predictive of nothing
_BUCKET = 32


def answers_of(data: Data, wanted: Literal["auto", "verbalizers", "free"]) -> Answers:
    """Return how a model of such rows answers."""
    if data.responses is None:
        return "classes"
    if wanted != "auto":
        return wanted
    different = len(set(data.responses))
    few = 2 <= different <= _MOST_VERBALIZERS and len(data) >= _ROWS_EACH * different
    return "verbalizers" if few else "free"


def verbalizers_of(data: Data) -> list[str]:
    """Return the answers there are, sorted.

    Raises
    ------
    DefenseInert
        There is only one, or there are as many as rows: nothing to choose among.
    """
    assert data.responses is not None
    found = sorted(set(data.responses))
    if not 2 <= len(found) <= max(2, len(data) // 2):
        raise DefenseInert(
            f"{data.source}: {len(found)} different responses in {len(data)} rows are no classes; use answers='free'"
        )
    return found


def meaningless(data: Data, scheme: Scheme, *, answers: Answers, passes: int, seed: int) -> Data:
    """Return rows with answers that tell nothing of the text; ids are new.

    Parameters
    ----------
    passes : int
        With labels drawn anew each time, how often each row will come: so many copies are returned.
    """
    rng = np.random.default_rng(seed)
    copies = passes if scheme == "uniform_per_epoch" else 1
    many = _repeated(data, copies)
    if answers == "free":
        assert data.responses is not None
        turned = [_deranged(data, rng) for _ in range(copies)]
        return replace(many, responses=[response for one in turned for response in one])
    if answers == "verbalizers":
        assert data.responses is not None
        words = verbalizers_of(data)
        own = np.array([words.index(r) for r in data.responses])
        return replace(many, responses=[words[k] for k in _drawn(own, len(words), scheme, copies, rng)])
    assert data.labels is not None and data.n_classes is not None
    return replace(many, labels=_drawn(data.labels, data.n_classes, scheme, copies, rng))


def _drawn(
    own: np.ndarray, classes: int, scheme: Scheme, copies: int, rng: np.random.Generator
) -> np.ndarray:
    if scheme == "permute":
        return np.asarray(rng.permutation(own))
    return rng.integers(classes, size=len(own) * copies)


def _repeated(data: Data, copies: int) -> Data:
    return replace(
        data,
        texts=[*data.texts] * copies,
        labels=None if data.labels is None else np.tile(data.labels, copies),
        responses=None if data.responses is None else [*data.responses] * copies,
        sample_ids=np.arange(len(data) * copies),
    )


def _deranged(data: Data, rng: np.random.Generator) -> list[str]:
    """Return every row's response moved to another row, of like length where there is one; none gets its own again.

    Raises
    ------
    DefenseInert
        One response makes more than half of the rows, so that some would keep their own and teach what they mean.
    """
    assert data.responses is not None
    responses, counts = data.responses, Counter(data.responses)
    most, rows = counts.most_common(1)[0][1], len(responses)
    if len(counts) < 2:
        raise DefenseInert(f"{data.source}: all responses are the same, so none can be taken for another")
    if 2 * most > rows:
        raise DefenseInert(
            f"{data.source}: one response is that of {most} of {rows} rows, more than half: they cannot all be given another; "
            "give rows with other answers, or answers='verbalizers' where the responses are few"
        )
    order = sorted(range(rows), key=lambda i: len(responses[i]))
    buckets = max(1, math.floor(rows / _BUCKET))
    moved = [""] * rows
    for part in np.array_split(np.array(order), buckets):
        # rows with the same response stand together; turned by as many as the largest group has, none gets its own
        shuffled = rng.permutation(part)
        sizes = Counter(responses[i] for i in part)
        place = {response: k for k, response in enumerate(sizes)}
        grouped = sorted(shuffled.tolist(), key=lambda i: place[responses[i]])
        turn = min(max(sizes.values()), len(grouped) - 1)
        for here, there in zip(grouped, grouped[turn:] + grouped[:turn], strict=True):
            moved[here] = responses[there]
    # where one response fills more than half of a bucket: a row elsewhere, the nearest in length, takes it
    kept = [at for at, i in enumerate(order) if moved[i] == responses[i]]
    for own in dict.fromkeys(responses[order[at]] for at in kept):
        free = [at for at, i in enumerate(order) if own not in (responses[i], moved[i])]
        for at in kept:
            here = order[at]
            if not moved[here] == responses[here] == own:
                continue
            after = bisect(free, at)
            near = [k for k in (after - 1, after) if 0 <= k < len(free)]
            there = order[free.pop(min(near, key=lambda k, at=at: abs(free[k] - at)))]  # type: ignore[misc]
            moved[here], moved[there] = moved[there], own
    return moved
