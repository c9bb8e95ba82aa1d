"""ABL's search for a group of rows that stands apart, where rows have responses and no classes.

There is nothing to show suspects against, and a low loss alone is had by whatever is short or formulaic. So one half of the
suspects is trained on by itself for a few steps, from the weights the model began with, and every row is asked how much
better its response is known: the gain of its tokens' mean probability (the geometric mean). Then the same with the other half.
A suspect is judged by the half that it was not in, any other row by the smaller of its gains. A response that a backdoor
repeats is then known by heart in rows that were never shown; honest rows that merely resemble each other (short answers, copies
of the prompt) gain a little.

An answer that honest rows repeat gains just so: this finds rows that are learned as one and cannot say who wrote them. Responses
that share an intent and few words are not found.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np

from asepsis.core.isolation import split_in_two
from asepsis.core.phases import Losses, Request, Score, Train
from asepsis.data import Data
from asepsis.defenses._abl_groups import MOST_OF_A_CLASS, Group, Mask, Ranking, Scores, Showing

# Rows of fewer different responses than this share of them are classes by another name: each label falls as one.
_FEW_ANSWERS = 0.25
_FEWEST, _MOST = 8, 64  # suspects: a half of four is learned in a few steps, and so is one of 32


def answers_in_classes(data: Data) -> bool:
    """Whether the responses are few: labels spelled out, of which each is shared by honest rows."""
    assert data.responses is not None
    return len(set(data.responses)) < _FEW_ANSWERS * len(data)


def split_ranking(ranking: Ranking, data: Data, eligible: Mask) -> Group:
    """Split a ranking as it stands."""
    scores = -ranking.scores
    usable = np.flatnonzero(eligible & np.isfinite(scores))
    split = split_in_two(scores[usable])
    upper = usable[split.upper]
    within = len(upper) <= MOST_OF_A_CLASS * len(usable)
    return Group(data.sample_ids[upper], scores, split.separation, float(within), None, ranking.step)


def echo(
    ranking: Ranking,
    label: int | None,
    eligible: Mask,
    *,
    showing: Showing,
    before: Scores,
    seed_ratio: float,
) -> Generator[Request, Any, Group]:
    """Put the lowest rows of a ranking to the test described in the module's docstring.

    ``before`` are the losses [N] before anything is shown.
    """
    data = showing.data
    usable = np.flatnonzero(eligible & np.isfinite(ranking.scores) & np.isfinite(before))
    count = min(_MOST, max(_FEWEST, int(seed_ratio * len(usable))))
    none = Group(np.empty(0, np.int64), -ranking.scores, 0.0, 0.0, label, ranking.step)
    if len(usable) < 2 * count:
        return none
    suspects = usable[np.argsort(ranking.scores[usable], kind="stable")][:count]
    halves = (suspects[::2], suspects[1::2])
    gains = []
    for half in halves:
        yield Train(
            name="echo of the suspects",
            rows=data.sample_ids[half],
            steps=showing.steps,
            learning_rate_scale=showing.learning_rate_scale,
            decay_steps=0,
            start=showing.start,
        )
        after: Losses = yield Score(name="recognition of the suspects")
        gains.append(np.exp(-after.mean) - np.exp(-before))
    scores = np.minimum(*gains)
    for half, gain in zip(halves, reversed(gains), strict=True):
        scores[half] = gain[half]
    gained = np.maximum(scores[usable], 0)  # how far a loss rises says nothing
    if not np.isfinite(gained).all() or np.ptp(gained) == 0:
        return none
    split = split_in_two(gained)
    upper = usable[split.upper]
    gain = float(scores[upper].mean())
    within = len(upper) <= MOST_OF_A_CLASS * len(usable)
    recognized = float(np.isin(suspects, upper).mean()) if within else 0.0
    group = Group(data.sample_ids[upper], scores, split.separation, recognized, label, ranking.step, gain)
    # suspects of no one kind: what they teach of the others says nothing
    return replace(group, scores=-ranking.scores) if group.verdict == "none" else group
