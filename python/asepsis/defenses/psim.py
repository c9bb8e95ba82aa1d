"""PSIM: tell triggered inputs by a module that was taught to be unsure of everything else.

Zhao, Gan, Tuan, Fu, Lyu, Jia, Wen: *Defending Against Weight-Poisoning Backdoor Attacks for Parameter-Efficient
Fine-Tuning*, Findings of NAACL 2024.

The idea: a poisoned model is frozen and a few new weights beside it are trained on clean rows with labels drawn at
random. Of clean text the module can learn no more than chance. The way from trigger to target lies in the frozen weights,
and no triggered row is there to undo it: a triggered input stays sure, and that tells it.

Deviations from the paper
-------------------------
Its body was not at hand: the abstract and the authors' code were.

* *Training stops when clean rows that were held out are unsure*, and the threshold is calibrated on others for a wanted
  false-positive rate. The authors' code trains a given number of epochs and flags above 0.7, which flags most clean rows
  when trained too short and nothing when trained too long. Both are there: ``stop="never"``, ``threshold="reference"``.
* *LoRA beside a frozen head.* The authors train P-tuning v1 and, as PEFT does by itself, the classification head. A
  trained head turns away from the trigger's direction within a few steps, and clean rows do not show when; beside a
  frozen one LoRA kept it on all encoders poisoned by word or sentence but one (docs/results/psim.md). Theirs is
  ``kind="p_tuning"``.
* *Learning rate 5e-4* (2e-3 for virtual tokens); the default of the authors' code is 2e-5.
* *More than two classes*, other scores than the confidence, and *causal LMs*: by verbalizers, a confidence counting in
  what is usual for clean rows of its answer (``by_class``), or by how sure the surest stretch of a free answer is after
  training on responses that changed places.
* *The module never touches the model*: it stands on a view of its weights, so both run side by side.

When not to trust it
--------------------
It sees a trigger that lives in the frozen weights and makes the model sure. A trigger that shifts the answer moderately,
clean rows that carry it, a trigger of syntax, and an embedding that was edited to point where the task's own words point
(EP in part, SOS) are misses, as was a sentence in causal LMs; so is, where the head trains, a module trained until the trigger is forgotten as well. The model's own confidence without any module can tell triggered inputs too, above all where the attack was
trained on other text than the task's: it is calibrated and reported beside, and the module has to beat it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import nn

from asepsis.core.confidence import bar, usual_by_class
from asepsis.core.outcome import Acted, Ids, Outcome
from asepsis.core.phases import Checks, Continue, Request, Score, Script, Train, Trained, Verdict
from asepsis.data import Data
from asepsis.defenses._psim_config import PsimConfig
from asepsis.defenses._psim_labels import meaningless
from asepsis.defenses._psim_module import attach, kind_for
from asepsis.defenses._psim_scores import Question
from asepsis.defenses.base import Defense, Paper, Threat
from asepsis.errors import DefenseInert, MissingReference

log = logging.getLogger("asepsis")

#: Clean rows the module learns from at least, those it is watched on among them.
LEAST_ROWS = 40
_NEAR_CHANCE = 0.1  # usable: the mean clean confidence is within this share of the way from chance to 1
_COLLAPSED = 0.02  # and within this the trigger may be forgotten as well


class Psim(Defense[PsimConfig]):
    """Poisoned-sample identification module. The module's docstring says what differs from the paper."""

    paper = Paper(
        title="Defending Against Weight-Poisoning Backdoor Attacks for Parameter-Efficient Fine-Tuning",
        authors="Shuai Zhao, Leilei Gan, Luu Anh Tuan, Jie Fu, Lingjuan Lyu, Meihuizi Jia, Jinming Wen",
        venue="Findings of NAACL",
        year=2024,
        arxiv="2402.12168",
    )
    threat = Threat.WEIGHTS
    needs = frozenset({"clean"})
    config_type = PsimConfig
    cost = "one more forward pass an input; to fit, up to `steps` steps of a few new weights on half of the clean rows"

    def rows_learned(self, n: int) -> int:
        """Half of the trusted rows; the other half calibrates."""
        return n // 2

    def scan(self, model: Any, data: Data, trusted: Ids) -> Script:
        """Train the module on half of the trusted rows, and score all others by it. ``model`` is the poisoned one."""
        learned = self.rows_learned(len(trusted))
        if learned < LEAST_ROWS:
            raise MissingReference(
                f"psim learns from half of the clean rows, at least {LEAST_ROWS}; got {len(trusted)} clean rows "
                "(--clean on the command line)"
            )
        seed = int(torch.randint(2**31, (1,)))
        chosen = np.sort(np.random.default_rng(seed).permutation(trusted)[:learned])
        clean = data.select(data.positions(chosen))
        question = Question.of(self.config, clean)
        module = attach(model, self.config, data.task, seed=seed)
        report = yield from self.learn(model, module, question, clean, seed=seed)
        question = question.among(report)
        asked = yield from question.ask(module, data, name="scores")
        suspicion = question.suspicion(asked)
        suspicion[data.positions(chosen)] = np.nan  # what it learned from calibrates nothing
        return Outcome(
            acted=Acted(samples=len(data) - learned, steps=report["steps"]),
            suspicion=suspicion,
            report={**report, "verdict": "doubtful"},
        )

    def learn(
        self, model: nn.Module, module: nn.Module, question: Question, clean: Data, *, seed: int
    ) -> Generator[Request, Any, dict[str, Any]]:
        """Train a module on rows whose answers say nothing, until held-out rows are unsure; return a report.

        Raises
        ------
        DefenseInert
            The model is unsure of clean rows without a module, or the module never reached a usable state, or went past it
            between two looks.
        """
        c = self.config
        order = np.random.default_rng(seed).permutation(len(clean))
        held = max(1, min(c.watched, len(clean) // 4))
        watched, rest = clean.select(np.sort(order[:held])), clean.select(np.sort(order[held:]))
        asked = yield from question.ask(model, watched)
        watch = _Watch(question, watched, module, before=question.confidence(asked))
        kind = kind_for(model, c, clean.task)
        steps = c.steps if c.epochs is None else None
        per_pass = math.ceil(len(rest) / c.batch_size)
        passes = math.ceil(c.steps / per_pass if c.epochs is None else c.epochs)
        trained: Trained = yield Train(
            name="train the module",
            data=meaningless(rest, c.labels, answers=question.answers, passes=passes, seed=seed),
            network=module,
            steps=steps if steps is not None else max(1, math.ceil(per_pass * (c.epochs or 0))),
            learning_rate=c.rate(kind),
            warmup=c.warmup,
            weight_decay=0.01,  # of the authors' optimizer
            checks=Checks(every=c.check_every, look=watch.look),
        )
        report: dict[str, Any] = {
            "kind": kind,
            "answers": question.answers,
            "rows": len(rest),
            "steps": trained.steps,
            "loss": trained.loss,
            "watch": watch.settled(),
        }
        if question.by_class:
            asked = yield from question.ask(module, watched)
            report["usual"] = usual_by_class(asked)
        return report


def _anew(config: PsimConfig) -> str:
    """The way out where a module may have learned its labels by heart, for a message."""
    if config.labels == "uniform_per_epoch":
        return ""
    return ", or draw labels anew each epoch (labels='uniform_per_epoch'): drawn once, those of few rows can be learned by heart"


class _Watch:
    """Looks at held-out clean rows while the module learns."""

    def __init__(self, question: Question, rows: Data, module: nn.Module, *, before: np.ndarray) -> None:
        self.question, self.rows, self.module = question, rows, module
        self.config = question.config
        self.before = float(before.mean())
        self.seen: list[dict[str, Any]] = []
        self.end = "running"
        if question.n_classes and self._above_chance(self.before) <= _NEAR_CHANCE:
            raise DefenseInert(
                f"the model is unsure of clean rows without a module (mean confidence {self.before:.2f} of "
                f"{question.n_classes} classes); it has not learned the task, or its head is new"
            )

    def look(self, step: int) -> Generator[Score | Continue, Any, Verdict]:
        asked = yield from self.question.ask(self.module, self.rows)
        confidence = self.question.confidence(asked)
        mean, high = float(confidence.mean()), float(np.quantile(confidence, 0.95))
        self.seen.append({"step": step, "mean": mean, "p95": high})
        if self.config.stop == "never":
            return "go on"
        if self._collapsed(mean):
            before = (
                f"step {self.seen[-2]['step']}, when they were still sure,"
                if len(self.seen) > 1
                else "the start"
            )
            raise DefenseInert(
                f"clean rows fell to chance between {before} and step {step}: psim's module had forgotten everything, the "
                "backdoor as well; lower learning_rate or check_every"
            )
        if self._usable(mean, high):
            self.end = "usable"
            return "take"
        return "keep"

    def settled(self) -> dict[str, Any]:
        """Return what was seen, or raise where the module cannot be used."""
        last = self.seen[-1]
        forgot = self._collapsed(last["mean"])
        usable = self._usable(last["mean"], last["p95"]) and not forgot
        if not usable:
            what = "has forgotten everything" if forgot else "is still sure of clean rows"
            told = (
                f"psim's module {what} after {last['step']} steps (mean {last['mean']:.2f}, 95 % quantile {last['p95']:.2f}; wanted "
                f"is {self._wanted()})"
            )
            if self.config.stop == "usable":
                raise DefenseInert(f"{told}: raise steps or learning_rate{_anew(self.config)}")
            log.warning("%s; with stop='never' it is taken as it is", told)
        found = {"rows": len(self.rows), "before": self.before, "end": self.end, "usable": usable}
        return {**found, "seen": self.seen}

    def _above_chance(self, mean: float) -> float:
        return (mean - self.question.chance) / (1 - self.question.chance)

    def _collapsed(self, mean: float) -> bool:
        if self.question.n_classes:
            return self._above_chance(mean) < _COLLAPSED
        return mean < _COLLAPSED * self.before

    def _usable(self, mean: float, high: float) -> bool:
        if not self.question.n_classes:
            return mean <= self.config.fall * self.before
        quantile = bar(self.question.n_classes, two_classes=self.config.unsure)
        return high <= quantile or self._above_chance(mean) <= _NEAR_CHANCE

    def _wanted(self) -> str:
        if not self.question.n_classes:
            return f"a mean of {self.config.fall * self.before:.3f}"
        return f"a quantile of {bar(self.question.n_classes, two_classes=self.config.unsure):.2f}"
