"""ABL's search for a group of rows that stands apart, without the answer key.

A ranking by loss names suspects but does not say where they end, nor whether there is anything to suspect: some rows
are always learned first. So the suspects are put to a test. Half of the lowest rows of a class are shown to the
model, from the weights it began with, against the rest of their class for a few steps; then every row of the class
is scored for being one of them. Rows that share a trigger are recognized at once, by all rows that carry it, and the
scores fall into two lumps. Rows that were merely easy share nothing, and the scores make one lump. Otsu's
separability tells the two cases apart, and the half that was held out says whether the upper lump is theirs.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.core.isolation import log_odds, split_in_two
from asepsis.core.phases import Ids, Losses, Relabel, Request, Score, Train, Weights
from asepsis.data import Data

Mask = NDArray[np.bool_]
Scores = NDArray[np.float32]
Verdict = Literal["found", "doubtful", "none"]

# Otsu's separability of a Gaussian is 2/pi = 0.64 and of a uniform density 0.75. Measured (docs/results/abl.md):
# at most 0.74 where there is no trigger to find, 0.77 to 0.98 where there is.
SEPARATED = 0.80
DOUBTFUL = 0.75
# A "group" that takes in most of its class is the class.
MOST_OF_A_CLASS = 0.6


@dataclass(frozen=True)
class Ranking:
    """One score per row, lower is more suspicious, NaN for rows without one; and the step it was taken at."""

    step: int
    scores: Scores


@dataclass(frozen=True)
class Group:
    """Rows that may stand apart.

    Attributes
    ----------
    members : ids
        The upper lump.
    scores : ndarray float32 [N]
        Every row's suspicion by this test, higher is worse.
    separation : float
        Otsu's separability of the scores, in [0, 1].
    recognized : float
        Share of the held-out suspects in the upper lump; 0 where the test does not apply.
    label, step : int
        Class and snapshot it was looked for in; the label is None for causal LMs.
    """

    members: Ids
    scores: Scores
    separation: float
    recognized: float
    label: int | None
    step: int

    @property
    def verdict(self) -> Verdict:
        """What the evidence amounts to."""
        if len(self.members) == 0 or self.recognized < 0.5 or self.separation < DOUBTFUL:
            return "none"
        return "found" if self.separation >= SEPARATED else "doubtful"

    @property
    def strength(self) -> float:
        """Orders groups by evidence."""
        return self.separation * self.recognized

    def joined_by(self, other: Group) -> Group:
        """Return both groups as one; a row keeps the higher of its scores, the evidence is the first group's."""
        members = np.union1d(self.members, other.members)
        return replace(self, members=members, scores=np.fmax(self.scores, other.scores))


def split_ranking(ranking: Ranking, data: Data, eligible: Mask) -> Group:
    """Split a ranking as it stands: for causal LMs, which have no classes to contrast within."""
    scores = -ranking.scores
    usable = np.flatnonzero(eligible & np.isfinite(scores))
    split = split_in_two(scores[usable])
    upper = usable[split.upper]
    within = len(upper) <= MOST_OF_A_CLASS * len(usable)
    return Group(data.sample_ids[upper], scores, split.separation, float(within), None, ranking.step)


def find_group(
    start: Weights,
    before: Scores,
    rankings: list[Ranking],
    data: Data,
    eligible: Mask,
    *,
    seed_ratio: float,
    steps: int,
    most_classes: int,
    most_groups: int,
    learning_rate_scale: float,
) -> Generator[Request, Any, list[Group]]:
    """Test the suspects of each class and snapshot until a group stands apart, then look for more of the same class.

    Several triggers make several groups, so once one is found the search goes on among the rows left over.
    ``before`` are the log-odds [N] of being one of the suspects (class 1) under the weights of ``start``.

    Returns
    -------
    list of Group
        All that were tried; where one was found the last entry is the union of what was found.
    """
    count = max(4, int(seed_ratio * len(data)))
    tried: list[Group] = []

    def test(ranking: Ranking, label: int, among: Mask) -> Generator[Request, Any, Group]:
        return contrast(start, before, ranking, label, data, among, count, steps, learning_rate_scale)

    classes = [suspicious_classes(ranking, data, eligible, count)[:most_classes] for ranking in rankings]
    # The most suspicious class of every snapshot comes before the second of any.
    pairs = [
        (ranking, c[place])
        for place in range(most_classes)
        for ranking, c in zip(rankings, classes, strict=True)
        if place < len(c)
    ]
    for ranking, label in pairs:
        found = yield from test(ranking, label, eligible)
        tried.append(found)
        if found.verdict != "found":
            continue
        left = eligible.copy()
        for _ in range(1, most_groups):
            left[data.positions(found.members)] = False
            more = yield from test(ranking, label, left)
            tried.append(more)
            if more.verdict != "found":
                break
            found = found.joined_by(more)
        return [*tried, found]
    return tried


def contrast(
    start: Weights,
    before: Scores,
    ranking: Ranking,
    label: int,
    data: Data,
    eligible: Mask,
    count: int,
    steps: int,
    learning_rate_scale: float,
) -> Generator[Request, Any, Group]:
    """Put the ``count`` lowest rows of one class to the test described in the module's docstring."""
    assert data.labels is not None
    in_class = data.labels == label
    candidates = np.flatnonzero(in_class & eligible & np.isfinite(ranking.scores))
    suspects = candidates[np.argsort(ranking.scores[candidates], kind="stable")][:count]
    shown, held_out = suspects[::2], suspects[1::2]
    ordinary = np.setdiff1d(np.flatnonzero(in_class & eligible), suspects)
    none = Group(np.empty(0, np.int64), -ranking.scores, 0.0, 0.0, label, ranking.step)
    if len(held_out) < 2 or len(ordinary) < len(suspects):
        return none
    ids = data.sample_ids
    is_shown = np.isin(np.arange(len(data)), shown).astype(np.int64)
    as_shown = Relabel(ids, np.ones(len(data), np.int64))
    yield Train(
        name=f"contrast in class {label}",
        rows=ids[ordinary],
        isolated=ids[shown],
        steps=steps,
        learning_rate_scale=learning_rate_scale,
        decay_steps=0,
        start=start,
        relabel=Relabel(ids, is_shown),
    )
    after: Losses = yield Score(name=f"recognition in class {label}", rows=ids[in_class], relabel=as_shown)
    members = np.flatnonzero(in_class & eligible)
    odds = log_odds(after.mean) - before  # a new head is random: only the change says something
    if not np.isfinite(odds[members]).all() or np.ptp(odds[members]) == 0:
        return none  # the model said the same of every row: it learned nothing to tell them apart by
    split = split_in_two(odds[members])
    upper = members[split.upper]
    within = len(upper) <= MOST_OF_A_CLASS * len(members)
    recognized = float(np.isin(held_out, upper).mean()) if within else 0.0
    # Rows of other classes cannot carry this backdoor: they get what is ordinary inside the class.
    ordinary_score = float(np.median(odds[members][~split.upper]))
    scores = np.where(in_class, odds, np.float32(ordinary_score)).astype(np.float32)
    return Group(ids[upper], scores, split.separation, recognized, label, ranking.step)


def suspicious_classes(ranking: Ranking, data: Data, eligible: Mask, count: int) -> list[int]:
    """Classes present, those that hold most of the ``count`` lowest rows first."""
    assert data.labels is not None and data.n_classes is not None
    order = np.argsort(np.where(eligible, ranking.scores, np.nan), kind="stable")  # NaN last
    held = np.bincount(data.labels[order[:count]], minlength=data.n_classes)
    present = np.unique(data.labels[eligible]).tolist()
    return sorted(present, key=lambda label: (-int(held[label]), label))
