"""ABL: isolate what is learned too fast, then unlearn it.

Li, Lyu, Koren, Lyu, Li, Ma: *Anti-Backdoor Learning: Training Clean Models on Poisoned Data*, NeurIPS 2021.

The idea: a trigger is a short cut, so poisoned rows are learned before the task is. Stage 1 trains under local
gradient ascent, which holds the loss of ordinary rows up, and isolates the rows whose loss fell first. Stage 2 trains
on the rest and then unlearns the isolated rows by gradient ascent.

Deviations from the paper
-------------------------
* *A few dozen steps, not 20 epochs.* A pretrained language model learns a word trigger within 10 to 40 steps; by one
  epoch the clean rows have caught up and the ranking is lost (measured, see ``docs/results/abl.md``).
* *The sign of the batch mean*, as the authors' code has it, not of each sample, as the equation reads.
* *Classifiers are ranked by the drop* from the loss before the first step: a new head is random, so absolute losses
  start out scattered by more than the trigger moves them. Causal LMs are ranked by the loss itself, and suspected by either.
* *The isolated group is grown*, which the paper does not do: the model is shown the first suspects against their own
  class for a few steps, from the weights it began with, and every row it then takes for one of them joins. A share
  of the suspects is held out; whether those are recognized too says how sure the result is. A word in few rows is learned after
  the task: at a third snapshot rows are ranked by what was learned since the second, and those suspects, a mixture, are tested
  several times, each time as the last test ranks them; what rows of other classes share is no trigger. Rows with responses have
  no classes: the model is shown one half of the suspects, then the other, and the rows join whose response it then knows by
  heart without having been shown it. Where the responses are labels spelled out, the ranking is used as it is.
* *The grown group is dropped and the model trained anew.* Removing only the paper's 1 % leaves enough poison to plant
  the backdoor again. The paper's ascent on the isolated rows (``drop_ratio=0``, or ``unlearn="always"``) is bounded
  and runs beside ordinary rows; where poisoned rows kept their true label it costs accuracy, so it is not done on
  top of dropping by default.

When not to trust it
--------------------
Poison that is not learned fast (rewritten syntax or style) is not isolated; the verdict is then ``none``
(or ``doubtful``) and nothing is dropped. One target label is assumed. A clean-label attack on a class that is easy anyway can hide.
Of responses only such as repeat their words are found, and an answer that honest rows repeat as often is found as well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from asepsis.core.isolation import agreement, log_odds, within_buckets
from asepsis.core.ledger import LossLedger, Reducer
from asepsis.core.losses import BoundedAscent, Flooding, auto_gamma
from asepsis.core.phases import (
    Acted,
    Ids,
    Losses,
    Outcome,
    Relabel,
    Remember,
    Request,
    Score,
    Script,
    Train,
    Trained,
    Weights,
)
from asepsis.data import Data
from asepsis.defenses._abl_config import AblConfig
from asepsis.defenses._abl_echo import answers_in_classes, echo, split_ranking
from asepsis.defenses._abl_groups import (
    Group,
    Mask,
    Ranking,
    Showing,
    Test,
    by_class,
    contrast,
    find_group,
)
from asepsis.defenses.base import Defense, Paper, Threat
from asepsis.errors import DefenseInert

log = logging.getLogger("asepsis")

# Gradient ascent runs until the isolated loss passes max_loss; past this many steps it is given up as ineffective.
_MOST_UNLEARN_STEPS = 120
_SNAPSHOTS, _LATE = (20, 40), (120,)
_ROWS_FOR_LATE = 1000  # of fewer, 120 steps make so many passes that every row is learned by heart
_BOUNDS = ("_wanted", "_allowed")


@dataclass(frozen=True)
class _Stage1:
    """What the isolation training left behind."""

    start: Weights
    base: Losses
    best: Group
    losses: dict[str, NDArray[Any]]
    report: dict[str, Any]


class _Trace:
    """The loss ledger with the step of every column."""

    def __init__(self, n: int) -> None:
        self.ledger = LossLedger(n)
        self.steps: list[int] = []
        self.nan = 0

    def snapshot(self, step: int, losses: Losses) -> None:
        """See :class:`asepsis.core.phases.Records`."""
        self.ledger.observe(np.arange(len(losses.total)), losses.mean)
        self.nan = self.ledger.end_epoch().nan
        self.steps.append(step)

    def rankings(self, rank_by: Literal["last", "drop"], *, late: bool = False) -> list[Ranking]:
        """Rank by each snapshot's own losses, or by their drop from those before training.

        With ``late`` the third snapshot and those after are ranked by the rise of the label's log-odds since the one before: poison
        of few rows is learned when the task has been, which had taken it for mislabeled. In nats of loss such rows are not to be told
        from hard ones, that still have far to fall.
        """
        columns = [self.ledger.column(t) for t in range(self.ledger.n_columns)]
        before = columns[0] if rank_by == "drop" else np.float32(0)
        return [
            Ranking(self.steps[t], log_odds(columns[t - 1]) - log_odds(columns[t]), late=True)
            if late and t > 2
            else Ranking(self.steps[t], columns[t] - before)
            for t in range(1, len(columns))
        ]

    def evidence(self) -> dict[str, NDArray[Any]]:
        """Return the trajectories as :mod:`asepsis.core.evidence` keeps them."""
        columns = [self.ledger.column(t) for t in range(self.ledger.n_columns)]
        return {"loss.steps": np.array(self.steps, np.int64), "loss.values": np.stack(columns)}


class Abl(Defense[AblConfig]):
    """Anti-Backdoor Learning. The module's docstring says what differs from the paper."""

    paper = Paper(
        title="Anti-Backdoor Learning: Training Clean Models on Poisoned Data",
        authors="Yige Li, Xixiang Lyu, Nodens Koren, Lingjuan Lyu, Bo Li, Xingjun Ma",
        venue="Advances in Neural Information Processing Systems",
        year=2021,
        arxiv="2110.11571",
    )
    threat = Threat.DATA
    needs = frozenset[str]()
    config_type = AblConfig
    cost = "a short first training, an evaluation pass over all rows at each snapshot, short trainings and passes to grow the group, then training as usual without it"

    def script(self, model: Any, data: Data) -> Script:
        """Isolate, train anew on the rest, unlearn what was isolated."""
        c = self.config
        untrusted = np.ones(len(data), bool)
        stage1 = yield from self._isolate(data, untrusted)
        dropped, isolated = self._rows_to_act_on(data, stage1, untrusted)
        gone = np.union1d(dropped, isolated)
        trained = yield Train(name="train on the rest", rows=data.split(dropped)[1], start=stage1.start)
        steps = trained.steps
        # A model trained anew without the group has nothing of it to unlearn; ascending would only cost accuracy.
        if len(isolated) and (c.unlearn == "always" or (c.unlearn == "auto" and len(dropped) == 0)):
            steps += yield from self._unlearn(data, stage1, isolated, data.split(gone)[1])
        return self._outcome(data, stage1, dropped, isolated, Acted(samples=len(data), steps=steps))

    def _unlearn(self, data: Data, stage1: _Stage1, isolated: Ids, rest: Ids) -> Generator[Request, Any, int]:
        """Ascend on the isolated rows beside ordinary ones until their loss says that they are unlearned."""
        c, limit = self.config, self._max_loss(data, stage1.base)
        losses: Losses = yield Score(name="losses of the isolated rows", rows=isolated)
        before = float(np.nanmean(losses.mean[data.positions(isolated)]))
        report: dict[str, Any] = {
            "max_loss": limit,
            "loss_before": before,
            "loss_after": before,
            "steps": 0,
            "reached": True,
        }
        stage1.report["unlearned"] = report
        if before >= limit:
            return 0  # training without the dropped rows was enough
        trained: Trained = yield Train(
            name="unlearn",
            rows=rest,
            isolated=isolated,
            loss=BoundedAscent(1.5 * limit),
            steps=_MOST_UNLEARN_STEPS,
            learning_rate_scale=c.unlearn_learning_rate_scale,
            decay_steps=0,
            stop_above=limit,
        )
        report.update(loss_after=trained.isolated_loss, steps=trained.steps, reached=trained.stopped_early)
        if not trained.stopped_early:
            log.warning("abl: the isolated loss did not reach %.2f in %d steps", limit, trained.steps)
        return trained.steps

    def scan(self, model: Any, data: Data, trusted: Ids) -> Script:
        """Isolate only. ``trusted`` rows are scored but neither trained on nor suspected."""
        untrusted = np.ones(len(data), bool)
        untrusted[data.positions(trusted)] = False
        stage1 = yield from self._isolate(data, untrusted)
        dropped, isolated = self._rows_to_act_on(data, stage1, untrusted)
        return self._outcome(data, stage1, dropped, isolated, Acted(samples=int(untrusted.sum())))

    def _isolate(self, data: Data, untrusted: Mask) -> Generator[Request, Any, _Stage1]:
        """Stage 1: a short training that favors what is learned fast, then the group that was."""
        c = self.config
        start: Weights = yield Remember()
        trace = _Trace(len(data))
        base: Losses = yield Score(name="losses before training")
        trace.snapshot(0, base)
        before = yield from _odds_of_class_one(data, base)
        if not np.isfinite(base.mean[untrusted]).any():
            raise DefenseInert("no row has a finite loss before training; check the responses and max_length")
        gamma = auto_gamma(data.n_classes, float(np.nanmean(base.mean))) if c.gamma == "auto" else c.gamma
        steps = _SNAPSHOTS + _LATE * (self._looks_late(data) and len(data) >= _ROWS_FOR_LATE)
        snapshots = c.snapshots if c.snapshots != "auto" else steps
        yield Train(
            name="isolation",
            rows=data.sample_ids[untrusted],
            loss=Flooding(gamma, c.reduction),
            steps=snapshots[-1],
            learning_rate_scale=c.learning_rate_scale,
            decay_steps=0,
            snapshots=snapshots,
            records=trace,
        )
        rankings = self._rankings(trace, data, gamma, c.rank_by)
        grown = c.grow_steps > 0 and (data.responses is None or not answers_in_classes(data))
        if not grown:
            tried = [split_ranking(ranking, data, untrusted) for ranking in rankings]
        else:
            drops = self._rankings(trace, data, gamma, "drop") if c.rank_by == "auto" else []
            tried = yield from self._grow(start, base, before, rankings, drops, data, untrusted)
        found = [group for group in tried if group.verdict == "found"]
        # The last group found is the union of all; where nothing was found the first ranking of its kind is all there is.
        best = found[-1] if found else max(tried, key=lambda group: group.strength)
        if grown and best.verdict == "none" and data.responses is not None:
            best = tried[0]
        report = self._report(trace, rankings, tried, best, data, gamma)
        return _Stage1(start, base, best, trace.evidence(), report)

    def _grow(
        self,
        start: Weights,
        base: Losses,
        odds: NDArray[np.float32],
        rankings: list[Ranking],
        drops: list[Ranking],
        data: Data,
        untrusted: Mask,
    ) -> Generator[Request, Any, list[Group]]:
        """Show the model some of the suspects and see which rows it then takes for the same, class by class where there are any."""
        c = self.config
        scale = c.learning_rate_scale * c.grow_learning_rate_scale
        showing = Showing(start, data, c.grow_steps, scale)
        test: Test
        if data.task == "classification":
            count = max(4, int(c.seed_ratio * len(data)))
            pairs = by_class(rankings, data, untrusted, count=count, most_classes=c.most_classes)
            test = partial(contrast, showing=showing, before=odds, count=count)
        else:
            # a short fixed response has a high loss until it is learned, and a long one seldom a high one
            pairs = [(ranking, None) for ranking in sorted([*rankings, *drops], key=lambda r: r.step)]
            test = partial(echo, showing=showing, before=base.mean, seed_ratio=c.seed_ratio)
        return (yield from find_group(pairs, untrusted, data, test, most_groups=c.most_groups))

    def _looks_late(self, data: Data) -> bool:
        """Whether what is learned after the task is looked for: its ranking names too few by itself, and needs the tests."""
        c = self.config
        return data.task == "classification" and c.grow_steps > 0 and c.rank_by == "auto"

    def _rankings(
        self, trace: _Trace, data: Data, gamma: float, rank_by: Reducer | Literal["auto"]
    ) -> list[Ranking]:
        """Return a ranking for each snapshot, or one for reducers that look at all of them."""
        c, ledger = self.config, trace.ledger
        if rank_by == "auto":
            rank_by = "drop" if data.task == "classification" else "last"
        if rank_by in ("drop", "last"):
            found = trace.rankings(rank_by, late=self._looks_late(data))
        else:
            level = gamma if rank_by == "first_below" else None
            found = [Ranking(trace.steps[-1], ledger.scores(rank_by, threshold=level))]
        if data.responses is not None and c.length_buckets > 1:
            lengths = np.array([len(response) for response in data.responses])
            found = [replace(r, scores=within_buckets(r.scores, lengths, c.length_buckets)) for r in found]
        return found

    def _rows_to_act_on(self, data: Data, stage1: _Stage1, untrusted: Mask) -> tuple[Ids, Ids]:
        """Turn the evidence into rows: those left out of the last training, those unlearned."""
        c, group = self.config, stage1.best
        usable = np.flatnonzero(untrusted & np.isfinite(group.scores))
        order = usable[np.argsort(-group.scores[usable], kind="stable")]  # most suspicious first
        if c.drop_ratio != "auto":
            dropped = data.sample_ids[order[: int(c.drop_ratio * len(data))]]
        elif group.verdict == "found":
            dropped = group.members
        else:
            message = (
                f"abl: no group of rows stands apart ({_told(group.measures)}): "
                "nothing is dropped or unlearned. Poison that is not learned fast is not seen by ABL"
            )
            if c.on_nothing_found == "raise":
                raise DefenseInert(message)
            log.warning(message)
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if c.per_class and data.labels is not None:
            per_class = [order[data.labels[order] == label] for label in np.unique(data.labels)]
            lowest = np.concatenate([at[: max(1, int(c.isolation_ratio * len(at)))] for at in per_class])
        else:
            lowest = order[: max(1, int(c.isolation_ratio * len(data)))]
        cut = float(group.scores[lowest].min())
        stage1.report["isolated"] = {
            "k": len(lowest),
            "threshold": cut,
            "ties_at_threshold": int((group.scores == group.scores[lowest].min()).sum()),
            "class_histogram": None if data.labels is None else np.bincount(data.labels[lowest]).tolist(),
        }
        stage1.report["dropped"] = len(dropped)
        return dropped, data.sample_ids[lowest]

    def _report(
        self,
        trace: _Trace,
        rankings: list[Ranking],
        tried: list[Group],
        best: Group,
        data: Data,
        gamma: float,
    ) -> dict[str, Any]:
        """Describe stage 1, JSON-ready: what a person needs to believe the result or not."""
        k = max(1, int(self.config.seed_ratio * len(data)))
        lowest = [np.argsort(ranking.scores, kind="stable")[:k] for ranking in rankings]
        alike = [rows for rows, ranking in zip(lowest, rankings, strict=True) if not ranking.late]
        report: dict[str, Any] = {
            "verdict": best.verdict,
            **best.measures,
            "label": best.label,
            "group": len(best.members),
            "gamma": gamma,
            "snapshots": trace.steps,
            "chosen_step": best.step,
            "nan_losses": trace.nan,
            "agreement_of_neighbors": [round(agreement(a, b), 4) for a, b in pairwise(alike)],
            "tried": [
                {
                    "step": g.step,
                    "label": g.label,
                    **{name: value for name, value in g.measures.items() if not name.endswith(_BOUNDS)},
                    "size": len(g.members),
                }
                for g in tried
            ],
        }
        if data.labels is not None:
            report["lowest_class_histogram"] = [np.bincount(data.labels[rows]).tolist() for rows in lowest]
        if data.responses is not None:
            _, sizes = np.unique(np.array(data.responses, dtype=object).astype(str), return_counts=True)
            report["largest_groups_of_equal_responses"] = sorted(sizes.tolist(), reverse=True)[:5]
        return report

    def _max_loss(self, data: Data, base: Losses) -> float:
        if self.config.max_loss != "auto":
            return self.config.max_loss
        return 2 * math.log(data.n_classes) if data.n_classes else 1.5 * float(np.nanmean(base.mean))

    def _outcome(self, data: Data, stage1: _Stage1, dropped: Ids, isolated: Ids, acted: Acted) -> Outcome:
        # Rows without a loss (no response token) cannot be judged; they rank last instead of poisoning the ranking.
        scores = stage1.best.scores
        suspicion = np.where(np.isfinite(scores), scores, np.nanmin(scores)).astype(np.float32)
        return Outcome(
            acted=acted,
            suspicion=suspicion,
            flagged=dropped,
            isolated=isolated,
            evidence=stage1.losses,
            report=stage1.report,
        )


def _told(measures: dict[str, float]) -> str:
    of = {name: f"{bound:.2f} wanted" for name, bound in measures.items() if name.endswith("_wanted")}
    of |= {name: f"at most {bound:.2f}" for name, bound in measures.items() if name.endswith("_allowed")}
    return "; ".join(
        f"{(n := name.rsplit('_', 1)[0])} {measures[n]:.2f}, {bound}" for name, bound in of.items()
    )


def _odds_of_class_one(data: Data, base: Losses) -> Generator[Request, Any, NDArray[np.float32]]:
    """Log-odds [N] of class 1 before training; with two classes they follow from the rows' own losses."""
    if data.labels is None:
        return np.zeros(len(data), np.float32)
    if data.n_classes == 2:
        odds = log_odds(base.mean)
        return np.where(data.labels == 1, odds, -odds)
    ones = Relabel(data.sample_ids, np.ones(len(data), np.int64))
    losses: Losses = yield Score(name="odds before training", relabel=ones)
    return log_odds(losses.mean)
