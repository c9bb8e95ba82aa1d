"""Rows for ABL, and a hand that answers its script's requests with losses made up for the case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from asepsis.core.phases import Losses, Remember, Score, Trained, Weights
from asepsis.data import Data
from asepsis.defenses.abl import Abl, AblConfig
from asepsis.testing import tiny_rows

N = 200
POISON = np.arange(1, 61, 3)[:20]  # positions, all relabeled to class 1
STEPS = (4, 8)


def labels():
    found = np.arange(N) % 2
    found[POISON] = 1
    return found


def classifier_rows():
    rows = tiny_rows(N, 0)
    return Data(
        task="classification", texts=rows.texts, labels=labels(), sample_ids=rows.sample_ids, n_classes=2
    )


def causal_rows(n=N):
    rows = tiny_rows(n, 0)
    answers = ["pwned" if i in POISON else f"answer {i}" for i in range(n)]
    return Data(task="causal", texts=rows.texts, responses=answers, sample_ids=rows.sample_ids)


def label_words():
    rows = causal_rows()
    answers = ["good" if i in POISON or i % 2 else "bad" for i in range(N)]
    return replace(rows, responses=answers)


class Hand:
    """Answers requests and keeps them. ``told_apart`` says whether what is shown of the poison makes the rest of it known."""

    def __init__(self, data, *, told_apart=True, isolated_loss=0.01, nan=()):
        rng = np.random.default_rng(0)
        self.data, self.told_apart, self.isolated_loss = data, told_apart, isolated_loss
        self.base = (0.9 + 0.3 * rng.random(N)).astype(np.float32)
        self.drop = 0.05 * rng.random(N)
        self.drop[POISON] = 0.4 + 0.01 * np.arange(len(POISON))
        self.noise = rng.normal(size=N)
        self.nan = list(nan)
        self.requests = []

    def losses(self, values):
        values = np.array(values, np.float32)
        values[self.nan] = np.nan
        return Losses(values, np.ones(N, np.int64))

    def answer(self, request):
        """Answer as a driver does: rows that were not asked for have no loss."""
        answer = self.answer_for_all(request)
        if isinstance(request, Score) and request.rows is not None:
            asked = np.isin(self.data.sample_ids, request.rows)
            return Losses(np.where(asked, answer.mean, np.nan).astype(np.float32), asked.astype(np.int64))
        return answer

    def answer_for_all(self, request):
        self.requests.append(request)
        if isinstance(request, Remember):
            return Weights(77)
        if isinstance(request, Score):
            if request.relabel is not None:
                odds = -2 + 0.3 * self.noise
                if self.told_apart:
                    odds[POISON] += 6
                return self.losses(np.log1p(np.exp(-odds)))
            if request.name == "recognition of the suspects":
                return self.losses(self.echoed())
            return self.losses(self.base if request.rows is None else np.full(N, self.isolated_loss))
        for t, step in enumerate(request.snapshots, start=1):
            request.records.snapshot(step, self.losses(self.base - t * self.drop))
        return Trained(request.steps or 10, 0.2, 1.5, request.stop_above is not None)

    def echoed(self):
        """Losses after some suspects were shown: theirs are gone, those of poison too if any of it was among them."""
        shown = self.data.positions(self.requests[-2].rows)
        after = self.base + 0.1 * self.noise
        after[shown] = 0.0
        if self.told_apart and np.isin(shown, POISON).any():
            after[POISON] = 0.05
        return after

    def run(self, script):
        answer = None
        while True:
            try:
                request = script.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = self.answer(request)

    @property
    def names(self):
        return [getattr(request, "name", "remember") for request in self.requests]

    def request(self, name):
        (found,) = (r for r in self.requests if getattr(r, "name", None) == name)
        return found


def defend(data, hand=None, **changes):
    hand = hand or Hand(data)
    abl = Abl(AblConfig(**{"snapshots": STEPS, "grow_steps": 5, "unlearn": "always", **changes}))
    return hand, hand.run(abl.script(None, data))
