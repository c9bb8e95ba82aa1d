"""Fine-mixing: put pretrained weights in place of a random share of a tuned model's, then tune on clean rows.

Zhang, Lyu, Ma, Wang, Sun: *Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models*, Findings of EMNLP 2022.

The idea: a backdoor is spread over many weights and tuned in together with the task. Where most weights are the
pretrained ones again, neither works; a few clean rows bring the task back, and nothing brings back the backdoor.

Deviations from the paper
-------------------------
Its body was not at hand when this was written, so these are choices where it may say otherwise.

* *The ratio is the smallest that passes a guard*: accuracy on held-out clean rows within 2 points of the victim's. The
  attack grows with the ratio and, masks being nested, so does accuracy but for noise: ratios are searched by bisection,
  the next smaller one having been tried and refused. ``search="ascending"`` tries them from the smallest on.
* *Bernoulli masks*, from a counter-based generator, not exactly a share of elements: the report has what was realized.
* *The victim's head is kept* where the base has none, and tuned with everything else; ``head="reinit"`` draws it anew.
* *Tuning*: AdamW, linear warm-up over a tenth of the steps and linear decay, up to ten epochs, best epoch on the
  held-out rows.

When not to trust it
--------------------
At ratio 1 nothing was mixed: the outcome says ``unmixed`` and is no more than fine-tuning on clean rows. A base that
carries the backdoor itself gives it back. With fewer than 500 held-out rows the guard is coarse (at 0.9 accuracy the
standard error of 100 rows is 3 points), which the report says. Accuracy on clean rows is all that is looked at:
measure attack success yourself if you know a trigger. Large instruction-tuned models may be destroyed by it; then
no ratio passes, and that is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from asepsis.core.mix_report import MixReport
from asepsis.core.mixing import Mixing
from asepsis.core.phases import (
    Acted,
    Forget,
    Ids,
    Losses,
    Outcome,
    Remember,
    Request,
    Restore,
    Rewrite,
    Score,
    Script,
    Train,
    Trained,
    Weights,
)
from asepsis.core.quality import Quality
from asepsis.core.weights import Checkpoint
from asepsis.data import Data
from asepsis.defenses._finemixing_config import FinemixingConfig
from asepsis.defenses.base import Defense, Paper, Threat
from asepsis.errors import AccuracyLost, MissingReference

log = logging.getLogger("asepsis")

#: Held-out rows below which an accuracy guard of two points is coarse: 500 rows at 0.9 have a standard error of 1.3.
_ENOUGH = 500
_FEWEST = 5  # clean rows of each class


@dataclass(frozen=True)
class _Trial:
    """One ratio: the mean over its masks, and the best of its models."""

    ratio: float
    quality: Quality
    report: MixReport
    trained: Trained
    weights: Weights | None
    steps: int
    row: dict[str, Any]


class Finemixing(Defense[FinemixingConfig]):
    """Fine-mixing. The module's docstring says what differs from the paper."""

    paper = Paper(
        title="Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models",
        authors="Zhiyuan Zhang, Lingjuan Lyu, Xingjun Ma, Chenguang Wang, Xu Sun",
        venue="Findings of the Association for Computational Linguistics: EMNLP",
        year=2022,
        arxiv="2210.09545",
    )
    threat = Threat.WEIGHTS
    needs = frozenset({"base", "clean"})
    config_type = FinemixingConfig
    cost = "reads both checkpoints and writes one for each ratio tried, and tunes on the clean rows each time"

    def repair(self, victim: Checkpoint, rows: Data | None) -> Script:
        """Mix and tune, ratio by ratio, until the guard is satisfied."""
        c = self.config
        if rows is None or self.given.base is None:
            raise MissingReference("finemixing needs base, clean; pass them to purify()")
        tune, held_out = self._split(rows)
        losses: Losses = yield Score(name="the victim on held-out clean rows", rows=held_out)
        before = _quality(losses, rows, held_out)
        mixing = Mixing.of(self.given.base, victim)
        ratios = c.ratios if c.reserve_ratio == "auto" else (float(c.reserve_ratio),)
        seeds = c.mask_seeds if c.reserve_ratio == "auto" else c.mask_seeds[:1]
        if len(held_out) < _ENOUGH:
            log.warning("finemixing: %s", _coarse(len(held_out)))
        tried: list[dict[str, Any]] = []
        steps = 0
        kept: _Trial | None = None
        discarded: _Trial | None
        low, high = (
            0,
            len(ratios),
        )  # the smallest that passes is among ratios[low:high], or kept, or none does
        while low < high:
            at = low if c.search == "ascending" else (low + high) // 2
            ratio = ratios[at]
            # at 0 and 1 every mask is the same
            masks = seeds if 0 < ratio < 1 else seeds[:1]
            trial = yield from self._try(mixing, ratio, masks, tune, held_out, before)
            steps += trial.steps
            tried.append(trial.row)
            if not self._passes(trial.quality, before):
                low, discarded = at + 1, trial
            else:
                high, discarded, kept = at, kept, trial
                if trial.weights is None and low < high:  # the next trial would write over it
                    kept = replace(trial, weights=(yield Remember()))
            if discarded is not None and discarded.weights is not None:
                yield Forget(weights=discarded.weights)
        tried.sort(key=lambda row: float(row["reserve_ratio"]))
        if kept is None:
            raise AccuracyLost(self._refusal(before, tried), tried)
        return (yield from self._keep(kept, before, tried, len(rows), steps))

    def _try(
        self,
        mixing: Mixing,
        ratio: float,
        seeds: tuple[int, ...],
        tune: Ids,
        held_out: Ids,
        before: Quality,
    ) -> Generator[Request, Any, _Trial]:
        """Mix and tune at one ratio, once for each mask, and keep the best of the models.

        Where the first mask misses the guard by more than two standard errors the others are spared.
        """
        c = self.config
        found: list[tuple[Quality, Trained, MixReport]] = []
        weights: Weights | None = None
        best = 0
        for seed in seeds:
            where = f"reserve ratio {ratio:g}, mask {seed}"
            write = partial(mixing.write, reserve_ratio=ratio, seed=seed, head=c.head)
            report: MixReport = yield Rewrite(name=f"mix: {where}", edit=write)
            trained: Trained = yield Train(
                name=f"tune: {where}", rows=tune, epochs=c.epochs, warmup=c.warmup, validation=held_out
            )
            assert trained.kept_epoch is not None
            found.append((trained.validated[trained.kept_epoch], trained, report))
            if len(found) == 1 and self._hopeless(found[0][0], before):
                break
            if len(seeds) > 1 and (len(found) == 1 or found[-1][0].better_than(found[best][0])):
                if weights is not None:
                    yield Forget(weights=weights)
                best, weights = len(found) - 1, (yield Remember())
        quality = Quality.mean([q for q, _, _ in found])
        row = {
            "reserve_ratio": ratio,
            "realized_ratio": found[best][2].ratio,
            **quality.to_dict(),
            "masks": [
                {"seed": seed, "kept_epoch": t.kept_epoch, "untuned": t.validated[0].to_dict(), **q.to_dict()}
                for seed, (q, t, _) in zip(seeds, found, strict=False)
            ],
        }
        steps = sum(t.steps for _, t, _ in found)
        return _Trial(ratio, quality, found[best][2], found[best][1], weights, steps, row)

    def _keep(
        self, trial: _Trial, before: Quality, tried: list[dict[str, Any]], n: int, steps: int
    ) -> Generator[Request, Any, Outcome]:
        """Put the best model of the trial in place and say what it is."""
        if trial.weights is not None:
            yield Restore(weights=trial.weights)
            yield Forget(weights=trial.weights)
        unmixed = trial.report.reserve_ratio == 1
        if unmixed:
            log.warning(
                "finemixing: only reserve ratio 1 keeps the accuracy, where nothing is mixed: this is fine-tuning on clean "
                "rows and no more. Give more clean rows, or raise accuracy_drop"
            )
        assert trial.trained.kept_epoch is not None
        final = trial.trained.validated[trial.trained.kept_epoch]
        report = {
            "verdict": "unmixed" if unmixed else "mixed",
            "reserve_ratio": trial.ratio,
            "guard": self._guard(before)
            | {"coarse": _coarse(before.rows) if before.rows < _ENOUGH else None},
            "victim": before.to_dict(),
            "final": final.to_dict(),
            "tried": tried,
            "mixing": trial.report.to_dict(),
            "head": self.config.head,
            "loss": trial.trained.loss,
        }
        return Outcome(acted=Acted(samples=n, steps=steps), report=report)

    def _split(self, rows: Data) -> tuple[Ids, Ids]:
        """Return (to tune on, held out) as ids, the same share of every class."""
        rng = np.random.default_rng(self.config.split_seed)
        groups = [np.arange(len(rows))]
        if rows.labels is not None:
            groups = [np.flatnonzero(rows.labels == label) for label in np.unique(rows.labels)]
        fewest = min(len(group) for group in groups)
        if fewest < _FEWEST:
            each = "" if rows.labels is None else " of each class"
            raise MissingReference(
                f"finemixing tunes on clean rows and holds some out: it needs at least {_FEWEST}{each}, got {fewest}; the paper "
                "has 64 of each class"
            )
        held = []
        for group in groups:
            wanted = min(max(1, round(self.config.validation_ratio * len(group))), len(group) - 1)
            held.append(rng.permutation(group)[:wanted])
        held_out = np.sort(np.concatenate(held))
        return rows.sample_ids[np.setdiff1d(np.arange(len(rows)), held_out)], rows.sample_ids[held_out]

    def _passes(self, quality: Quality, before: Quality) -> bool:
        c = self.config
        if c.accuracy_drop is None:
            return True
        if quality.accuracy is not None and before.accuracy is not None:
            return quality.accuracy >= before.accuracy - c.accuracy_drop - 1e-9
        return quality.loss <= before.loss + c.loss_rise  # False for NaN

    def _hopeless(self, quality: Quality, before: Quality) -> bool:
        error = quality.standard_error
        if self.config.accuracy_drop is None or error is None:
            return False
        better = Quality(quality.rows, min(1.0, (quality.accuracy or 0.0) + 2 * error), quality.loss)
        return not self._passes(better, before)

    def _guard(self, before: Quality) -> dict[str, Any]:
        """What the guard asks for, JSON-ready."""
        c = self.config
        on: dict[str, Any] = {"on": c.accuracy_drop is not None, "rows": before.rows}
        if c.accuracy_drop is None:
            return on
        if before.accuracy is not None:
            return on | {
                "lowest_accuracy": before.accuracy - c.accuracy_drop,
                "standard_error": before.standard_error,
            }
        return on | {"highest_loss": before.loss + c.loss_rise}

    def _refusal(self, before: Quality, tried: list[dict[str, Any]]) -> str:
        what = "accuracy" if before.accuracy is not None else "loss"
        reached = ", ".join(
            f"{row['reserve_ratio']:g}: " + ("not finite" if row[what] is None else f"{row[what]:.3f}")
            for row in tried
        )
        if before.accuracy is not None:
            had = f"accuracy {before.accuracy:.3f}, at least {before.accuracy - (self.config.accuracy_drop or 0):.3f} was wanted"
            option = "accuracy_drop"
        else:
            had = f"loss {before.loss:.3f}, at most {before.loss + self.config.loss_rise:.3f} was wanted"
            option = "loss_rise"
        return (
            f"no reserve ratio keeps what the model can do on {before.rows} held-out clean rows: the victim has {had}; reached "
            f"by ratio {reached}. Give more clean rows or epochs, try another learning rate, or raise {option}"
        )


def _quality(losses: Losses, rows: Data, ids: Ids) -> Quality:
    return Quality.of(losses.total, losses.count, losses.correct, rows.positions(ids))


def _coarse(n: int) -> str:
    return (
        f"{n} held-out rows make a coarse guard (at accuracy 0.9 a standard error of {100 * (0.09 / n) ** 0.5:.1f} points); "
        f"{_ENOUGH} or more make a sharp one"
    )
