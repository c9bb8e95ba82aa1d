"""ABL's search for a group of rows that stands apart, without the answer key.

A ranking by loss names suspects but does not say where they end, nor whether there is anything to suspect: some rows
are always learned first. So the suspects are put to a test. Half of the lowest rows of a class are shown to the
model, from the weights it began with, against the rest of their class for a few steps; then every row of the class
is scored for being one of them. Rows that share a trigger are recognized at once, by all rows that carry it, and the
scores fall into two lumps. Rows that were merely easy share nothing, and the scores make one lump. Otsu's
separability tells the two cases apart, and the half that was held out says whether the upper lump is theirs.

What was learned late is suspected too, and poison is but a part of that. A test gathers more of it, and is repeated on what
it ranked first. Rows gathered so stand apart without a trigger as well, and recognize each other; hence rows of other classes
are scored with them. What those share is no trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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
# of classes at most 0.74 where there is no trigger to find, 0.77 to 0.98 where there is. Gains of responses stand apart more
# easily, and BY_HEART and RECOGNIZED decide.
SEPARATED = 0.80
DOUBTFUL = 0.75
# A "group" that takes in most of its class is the class.
MOST_OF_A_CLASS = 0.6
# The share of the suspects held out that has to be taken for one of them.
RECOGNIZED = 0.5
# Suspects that a test has gathered can stand apart without a trigger: by a word of the field ("movie": 0.85), or by sounding like the
# other class. Rows of other classes share that, measured at 0.9 to 1.9 times the rate; a trigger they have not: 0.00 in groups found,
# 0.35 where a test was about to gather it.
ELSEWHERE, SHARED = 0.25, 0.5
ENOUGH_ROWS = 20  # of a class, for a rate
# A word in 5 % of the rows was 6 to 13 of 40 suspects, and took two to four tests to be all of them. Most tests of a late ranking, and
# after how many a group that is no trigger's is given up.
LATE_TESTS, GATHERED = 5, 3
# The mean gain of responses that are known by heart; what honest rows gain by resembling each other is less, but for one or two.
BY_HEART = 0.5


@dataclass(frozen=True)
class Ranking:
    """One score per row, lower is more suspicious, NaN for rows without one; and the step it was taken at.

    ``late`` says that what was learned since the snapshot before is ranked. Its lowest rows are a mixture: more of them are tested, and
    what a test makes of them is tested again; ``tests`` says how many tests it went through.
    """

    step: int
    scores: Scores
    late: bool = False
    tests: int = 0


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
    gain : float or None
        Mean score of the upper lump, where the scores are gains of probability.
    elsewhere : float or None
        How often rows of another class are taken for one of them, as a multiple of how often rows of this class are: the most of any
        class; where the suspects are late ones.
    """

    members: Ids
    scores: Scores
    separation: float
    recognized: float
    label: int | None
    step: int
    gain: float | None = None
    elsewhere: float | None = None

    @property
    def exclusive(self) -> bool:
        """Whether hardly a row of another class is taken for one of them, as far as that was asked."""
        return self.elsewhere is None or self.elsewhere <= ELSEWHERE

    @property
    def verdict(self) -> Verdict:
        """What the evidence amounts to."""
        known = self.gain is None or self.gain >= BY_HEART
        if len(self.members) == 0 or self.recognized < RECOGNIZED or not known or not self.exclusive:
            return "none"
        if self.separation < DOUBTFUL:
            return "none"
        return "found" if self.separation >= SEPARATED else "doubtful"

    @property
    def strength(self) -> tuple[int, bool, float]:
        """Orders groups by verdict and then by evidence. Of two that are none a late one says less: it was gathered to stand apart."""
        verdict = ("none", "doubtful", "found").index(self.verdict)
        return verdict, self.elsewhere is None, self.separation * self.recognized

    @property
    def measures(self) -> dict[str, float]:
        """What the verdict is made of and what is wanted, JSON-ready."""
        found = {
            "separation": self.separation,
            "separation_wanted": SEPARATED,
            "recognized": self.recognized,
            "recognized_wanted": RECOGNIZED,
        }
        if self.gain is not None:
            found |= {"gain": self.gain, "gain_wanted": BY_HEART}
        if self.elsewhere is not None:
            found |= {"elsewhere": self.elsewhere, "elsewhere_allowed": ELSEWHERE}
        return {name: round(value, 4) for name, value in found.items()}

    def joined_by(self, other: Group) -> Group:
        """Return both groups as one; a row keeps the higher of its scores, the evidence is the first group's."""
        members = np.union1d(self.members, other.members)
        return replace(self, members=members, scores=np.fmax(self.scores, other.scores))


@dataclass(frozen=True)
class Showing:
    """How suspects are shown to the model: the weights it begins with, the rows, the steps, a factor on the learning rate."""

    start: Weights
    data: Data
    steps: int
    learning_rate_scale: float


Test = Callable[[Ranking, int | None, Mask], Generator[Request, Any, Group]]


def find_group(
    pairs: Sequence[tuple[Ranking, int | None]], eligible: Mask, data: Data, test: Test, *, most_groups: int
) -> Generator[Request, Any, list[Group]]:
    """Put the suspects of each ranking and class to a test until a group stands apart, then look for more of the same class.

    Several triggers make several groups, so once one is found the search goes on among the rows left over, by every ranking of its step.

    Parameters
    ----------
    pairs : sequence of (Ranking, int or None)
        In the order they are tried; the class is None where rows have none.
    eligible : ndarray of bool [N]
        Rows that may be suspected.
    data : Data
    test : callable
        Of a ranking, a class and the rows that may be suspected.
    most_groups : int

    Returns
    -------
    list of Group
        All that were tried; where one was found the last entry is the union of what was found.
    """
    tried: list[Group] = []
    for ranking, label in pairs:
        tried += yield from _put_to(test, ranking, label, eligible)
        found = tried[-1]
        if found.verdict != "found":
            continue
        left = eligible.copy()
        beside = [other for other, of in pairs if of == label and other.step == ranking.step]
        for _ in range(1, most_groups):
            left[data.positions(found.members)] = False
            for other in beside:
                tried.append((yield from test(other, label, left)))
                if tried[-1].verdict == "found":
                    found = found.joined_by(tried[-1])
                    break
            else:
                break
        return [*tried, found]
    return tried


def _put_to(
    test: Test, ranking: Ranking, label: int | None, eligible: Mask
) -> Generator[Request, Any, list[Group]]:
    """Test a ranking, and, where it is a late one, what the test itself then ranks lowest, as long as it may come to something.

    A small share of poison among the suspects is enough for the test to gather the rest of it, but not to stand apart at once.
    """
    tried: list[Group] = []
    for tests in range(1, LATE_TESTS + 1):
        group = yield from test(ranking, label, eligible)
        tried.append(group)
        given_up = tests >= GATHERED and group.elsewhere is not None and group.elsewhere > SHARED
        if not ranking.late or group.verdict == "found" or len(group.members) == 0 or given_up:
            break
        ranking = Ranking(ranking.step, -group.scores, late=True, tests=tests)
    return tried


def by_class(
    rankings: Sequence[Ranking], data: Data, eligible: Mask, *, count: int, most_classes: int
) -> list[tuple[Ranking, int | None]]:
    """Return the classes to look into: the most suspicious class of every ranking before the second of any, and late rankings last."""
    classes = [suspicious_classes(ranking, data, eligible, count)[:most_classes] for ranking in rankings]
    pairs = [
        (ranking, of_ranking[place])
        for place in range(most_classes)
        for ranking, of_ranking in zip(rankings, classes, strict=True)
        if place < len(of_ranking)
    ]
    return sorted(pairs, key=lambda pair: pair[0].late)


def contrast(
    ranking: Ranking,
    label: int | None,
    eligible: Mask,
    *,
    showing: Showing,
    before: Scores,
    count: int,
) -> Generator[Request, Any, Group]:
    """Put the ``count`` lowest rows of one class, twice as many of a late ranking, to the test described in the module's docstring.

    ``before`` are the log-odds [N] of being one of the suspects (class 1) before anything is shown.
    """
    data = showing.data
    assert data.labels is not None
    in_class = data.labels == label
    candidates = np.flatnonzero(in_class & eligible & np.isfinite(ranking.scores))
    if ranking.late and ranking.tests == 0:
        count = min(2 * count, len(candidates) // 2)
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
        steps=showing.steps,
        learning_rate_scale=showing.learning_rate_scale,
        decay_steps=0,
        start=showing.start,
        relabel=Relabel(ids, is_shown),
    )
    asked = eligible | in_class if ranking.late else in_class
    after: Losses = yield Score(name=f"recognition in class {label}", rows=ids[asked], relabel=as_shown)
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
    elsewhere = None
    if ranking.late:
        others = [
            odds[(data.labels == other) & eligible] for other in np.unique(data.labels) if other != label
        ]
        taken = [float((rows > split.cut).mean()) for rows in others if len(rows) >= ENOUGH_ROWS]
        elsewhere = max(taken, default=1.0) * len(members) / len(upper)
    return Group(ids[upper], scores, split.separation, recognized, label, ranking.step, elsewhere=elsewhere)


def suspicious_classes(ranking: Ranking, data: Data, eligible: Mask, count: int) -> list[int]:
    """Classes present, those that hold most of the ``count`` lowest rows first."""
    assert data.labels is not None and data.n_classes is not None
    order = np.argsort(np.where(eligible, ranking.scores, np.nan), kind="stable")  # NaN last
    held = np.bincount(data.labels[order[:count]], minlength=data.n_classes)
    present = np.unique(data.labels[eligible]).tolist()
    return sorted(present, key=lambda label: (-int(held[label]), label))
