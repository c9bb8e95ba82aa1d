"""BTU: find the tokens whose embeddings the poison moves most, and take from them what they learned.

Jiang, Lyu, Li, Ma: *Backdoor Token Unlearning: Exposing and Unlearning Backdoors in Pretrained Language Models*,
AAAI 2025.

The idea: where word embeddings alone may learn, the tokens of a trigger move further than others, because they predict
their label wherever they stand; and the backdoor needs their rows. So the embeddings are exposed in short trainings
that are thrown away, the tokens that moved most are flagged, and their rows are kept from what training would make of
them.

Two modes. ``reference`` takes the steps of the authors' code; ``robust``, the default, is this project's. Rounds of
``robust``: word embeddings alone in the whole network; word embeddings and a new head on their mean; the latter again
on rows without what is flagged so far, because the words of a sentence share their movement.

Deviations from the paper
-------------------------
In both modes:

* *Tokens are left out by id*, after tokenizing, and special tokens, bytes and the user's list are never flagged. The
  authors' code replaces substrings and protects two ids.
* *Only tokens that occur and moved can be flagged*; where none moved the defense raises.
* *Every training starts a fresh optimizer.* The authors' code carries Adam's moments over the edit, so an overwritten
  row is pushed on in its old direction.
* *Learning rate, batch size, decay and clipping are the user's.* The authors' code has AdamW at 2e-5, decay 0.01, no
  clipping, batches of 256 for the pooled networks.
* *A value that did not move stays*; the authors' code writes 0 there.
* *Tuning on clean rows is optional*; the authors' code ends in it.

In ``robust`` mode also:

* *Lists by two scores are joined*: distance, which shows sentence triggers and high poison rates, and distance
  conditioned on how frequent the token is in **clean** text, which shows rare words at low rates. Frequencies never
  come from the data that is defended: poison inflates its own trigger's.
* *No weight decay while exposing*, only word embeddings and the head learn there, and the mean leaves padding out.
* *The flagged tokens are left out of the training rows*, and the model is trained once; their rows stay the pretrained
  ones (``order="edit_then_train"``). Overwriting after training, the paper's order, is ``order="train_then_edit"``: its
  padding rows cost accuracy wherever an ordinary word was flagged.
* *Whole rows are overwritten*, where rows are. The authors' code overwrites the values that moved further than a threshold, which is
  so low that nearly all did.
* *Causal LMs* (not treated in the paper): word embeddings learn under the LM loss, the output layer stays, the pooled
  network is left out, because there is no class for a bag of tokens to predict and a head over the vocabulary would
  only learn which words are common in responses. Only tokens of prompts are flagged, and only prompts lose tokens. Where
  the output layer is the embedding matrix, its gradient moves every row; the mean movement is subtracted.

When not to trust it
--------------------
Every list flags its share of the vocabulary, poisoned or not: on clean data some of the task's own words are lost. A
threshold exists for the list by frequency alone, where clean rows were given; ``least_margin`` asks more of every list.
Rewritten syntax or style has no token of
its own; such triggers are not found. A backdoor that also lives in the layers survives a row put back to ``pretrained`` after
training: measure attack success before and after the edit (``keep_stages=True``).
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from asepsis.core.evidence import moved_tokens
from asepsis.core.exposure import is_tied, word_embeddings
from asepsis.core.phases import (
    Acted,
    Encode,
    Encoded,
    Ids,
    Outcome,
    Request,
    Script,
    Spell,
    Spelled,
    Stage,
    Touch,
    Train,
    Trained,
)
from asepsis.core.purge import Purged, purge_dimensions, purge_rows
from asepsis.core.weights import Frequencies, Vocabulary
from asepsis.data import Data
from asepsis.defenses._btu_config import BtuConfig, Replacement
from asepsis.defenses._btu_exposure import Exposer, Exposure, token_report
from asepsis.defenses.base import Defense, Paper, Threat
from asepsis.errors import ConfigError, DefenseInert

log = logging.getLogger("asepsis")

# fewer clean rows leave most tokens of a vocabulary uncounted, and the word list knows more
_ROWS_TO_COUNT = 1000
# responses that take no more values than this are class names: their tokens may not be destroyed
_MOST_VERBALIZERS = 16


@dataclass(frozen=True)
class _Plan:
    """What is settled before anything is trained."""

    spelled: Spelled
    replacement: Replacement
    order: Literal["train_then_edit", "edit_then_train"]
    protected: np.ndarray[Any, np.dtype[np.bool_]]
    frequencies: Frequencies
    before: Tensor


class Btu(Defense[BtuConfig]):
    """Backdoor Token Unlearning. The module's docstring says what differs from the paper."""

    paper = Paper(
        title="Backdoor Token Unlearning: Exposing and Unlearning Backdoors in Pretrained Language Models",
        authors="Peihai Jiang, Xixiang Lyu, Yige Li, Jing Ma",
        venue="AAAI Conference on Artificial Intelligence",
        year=2025,
        arxiv="2501.03272",
    )
    threat = Threat.DATA
    needs = frozenset[str]()
    config_type = BtuConfig
    cost = "a short first training of the embeddings alone, then training as usual; clean tuning where clean rows are given"

    def script(self, model: Any, data: Data) -> Script:
        """Expose, train, overwrite what was exposed, tune on clean rows if there are any."""
        c, clean = self.config, self._clean()
        plan = yield from self._plan(model, data, clean)
        found = yield from self._expose(model, data, plan, rows=data.sample_ids, clean=clean)
        flagged = found.flagged
        if plan.order == "edit_then_train":
            purged = yield from self._purge(model, plan, flagged)
            trained: Trained = yield Train(name="train without the flagged tokens", drop_tokens=flagged)
        else:
            trained = yield Train(name="train")
            yield Stage(name="before edit")
            purged = yield from self._purge(model, plan, flagged)
            if purged.rows == 0:
                raise DefenseInert(
                    "overwriting the flagged rows changed nothing: training had not moved them"
                )
        yield Stage(name="after edit")
        steps, tuned = trained.steps, None
        if clean is not None and c.tuning_epochs > 0:
            tuned = yield Train(
                name="tune on clean rows",
                data=clean,
                epochs=c.tuning_epochs,
                learning_rate_scale=c.tuning_learning_rate_scale,
            )
            yield Stage(name="after tuning")
            steps += tuned.steps
        report = self._report(data, plan, found) | {
            "order": plan.order,
            "replacement": plan.replacement,
            "edited": {"rows": purged.rows, "values": purged.values, "thresholds": purged.thresholds},
            "loss": trained.loss,
            "tuning": None if tuned is None or clean is None else {"rows": len(clean), "loss": tuned.loss},
        }
        return Outcome(
            acted=Acted(samples=len(data), tokens=len(flagged), steps=steps),
            suspicion=found.suspicion(),
            edited=flagged if purged.rows else np.empty(0, np.int64),
            evidence=self._evidence(plan, found),
            report=report,
        )

    def scan(self, model: Any, data: Data, trusted: Ids) -> Script:
        """Expose only. A row's suspicion is the largest margin among its tokens.

        Every list flags its share of the vocabulary whatever the data are, so no row is flagged by this alone: a
        threshold comes from ``trusted`` rows, which are not exposed on, and not counted for frequencies either, because
        that would make them look more ordinary than other clean rows.
        """
        plan = yield from self._plan(model, data, None)
        untrusted = data.split(trusted)[1]
        found = yield from self._expose(model, data, plan, rows=untrusted, clean=None)
        return Outcome(
            acted=Acted(samples=len(untrusted), tokens=len(found.flagged)),
            suspicion=found.suspicion(),
            evidence=self._evidence(plan, found),
            report=self._report(data, plan, found) | {"verdict": "doubtful"},
        )

    def _clean(self) -> Data | None:
        clean = self.given.clean_reference
        if clean == "auto":
            raise ConfigError("btu takes no clean_reference='auto'; give rows you trust, or none")
        return clean if isinstance(clean, Data) else None

    def _plan(self, model: Any, data: Data, clean: Data | None) -> Generator[Request, Any, _Plan]:
        """Settle what is replaced by what, what is protected and what is expected, and refuse what cannot work."""
        c = self.config
        words = word_embeddings(model)
        spelled: Spelled = yield Spell()
        if c.mode == "reference" and not words.requires_grad:
            raise ConfigError(
                "mode='reference' trains all weights, the word embeddings of this model are frozen"
            )
        replacement = self._replacement(model, data, spelled)
        first = replacement == "pretrained" if c.order == "auto" else c.order == "edit_then_train"
        order: Literal["train_then_edit", "edit_then_train"] = (
            "edit_then_train" if first else "train_then_edit"
        )
        protected = np.zeros(len(words), bool)
        protected[[i for i in self._protected(spelled.vocabulary) if i < len(words)]] = True
        if data.responses is not None and replacement != "pretrained":
            said: Encoded = yield Encode(part="responses")
            if len(set(data.responses)) <= _MOST_VERBALIZERS:
                protected[said.ids] = True
        frequencies = Frequencies(None, "not asked for")
        if c.mode == "robust" and c.score != "l2":
            frequencies = self._frequencies(spelled.vocabulary, clean, rows=len(words))
        return _Plan(spelled, replacement, order, protected, frequencies, words.detach().to("cpu", copy=True))

    def _replacement(self, model: Any, data: Data, spelled: Spelled) -> Replacement:
        c, trains = self.config, word_embeddings(model).requires_grad
        chosen: Replacement
        if c.replacement != "auto":
            chosen = c.replacement
        elif c.mode == "robust" and c.order != "train_then_edit":
            chosen = "pretrained"
        elif c.mode == "reference" or (
            data.n_classes is not None and spelled.padding is not None and not is_tied(model)
        ):
            chosen = "pad"
        else:
            chosen = "pretrained" if trains else "mean"
        if chosen == "pad" and spelled.padding is None:
            raise ConfigError(
                "replacement='pad' needs a padding token that stands for nothing else, and this tokenizer has none; "
                "use replacement='pretrained' or 'mean'"
            )
        if chosen == "pretrained" and not trains and c.order == "train_then_edit":
            raise ConfigError(
                "replacement='pretrained' changes nothing where word embeddings are frozen; use replacement='mean', or "
                "order='edit_then_train'"
            )
        return chosen

    def _protected(self, vocabulary: Vocabulary) -> set[int]:
        named = set()
        for token in self.config.protect:
            at = vocabulary.ids.get(token) if isinstance(token, str) else token
            if at is None or not 0 <= at < len(vocabulary):
                raise ConfigError(
                    f"protect names {token!r}, which is no token of this vocabulary; write tokens as the tokenizer "
                    "does, with its mark of a space"
                )
            named.add(at)
        return named | vocabulary.protected

    def _frequencies(self, vocabulary: Vocabulary, clean: Data | None, *, rows: int) -> Frequencies:
        """Return expected counts by row of the matrix: counted, from enough clean rows, from the word list, or none."""
        c = self.config
        texts = None if clean is None or len(clean) < _ROWS_TO_COUNT else clean.texts
        found = Frequencies.of(vocabulary, counts=c.counts, corpus=texts, language=c.language)
        if found.per_ten_million is None:
            if c.score == "z":
                raise ConfigError(f"score='z' needs frequencies of clean text ({found.source}); give counts")
            log.warning("btu: no frequencies of clean text (%s); rare triggers may be missed", found.source)
            return found
        by_row = np.zeros(rows)
        known = min(rows, len(found.per_ten_million))
        by_row[:known] = found.per_ten_million[:known]
        return Frequencies(by_row, found.source)

    def _expose(
        self, model: Any, data: Data, plan: _Plan, *, rows: Ids, clean: Data | None
    ) -> Generator[Request, Any, Exposure]:
        found = yield from Exposer(
            self.config,
            model,
            data,
            rows=rows,
            protected=plan.protected,
            frequencies=plan.frequencies.per_ten_million,
            clean=clean,
        ).run()
        if len(found.flagged) == 0:
            raise DefenseInert(
                "no token stands out from what clean rows show, or by least_margin, so nothing is edited; score='both' also "
                "flags by distance, least_margin=1 a share of any data"
            )
        return found

    def _purge(self, model: Any, plan: _Plan, flagged: Ids) -> Generator[Request, Any, Purged]:
        c, words = self.config, word_embeddings(model)
        if plan.replacement == "pad":
            assert plan.spelled.padding is not None
            values = plan.before[plan.spelled.padding]
        elif plan.replacement == "mean":
            values = plan.before.double().mean(0)
        else:
            values = plan.before[torch.from_numpy(flagged)]

        def overwrite() -> Purged:
            if c.mode == "reference":
                return purge_dimensions(words, plan.before, flagged, values, rule=c.threshold_rule)
            return purge_rows(words, flagged, values)

        purged: Purged = yield Touch(name="overwrite the flagged rows", do=overwrite)
        return purged

    def _evidence(self, plan: _Plan, found: Exposure) -> dict[str, np.ndarray[Any, Any]]:
        """Keep how far the first exposure moved each candidate."""
        ids, expected = np.flatnonzero(found.rounds[0].candidates), plan.frequencies.per_ten_million
        return moved_tokens(ids, found.rounds[0].l2[ids], None if expected is None else expected[ids])

    def _report(self, data: Data, plan: _Plan, found: Exposure) -> dict[str, Any]:
        """Describe what was exposed, JSON-ready."""
        return {
            "mode": self.config.mode,
            "tokens": token_report(found, plan.spelled.vocabulary),
            "rows_with_a_flagged_token": int((found.suspicion() > 0).sum()),
            "tokens_per_list": self.config.per_list(len(plan.before)),
            "frequencies": plan.frequencies.source,
            "largest_z_of_clean_rows": found.largest_clean_z or None,
            "rounds": [
                {
                    "name": r.name,
                    "steps": r.trained.steps,
                    "loss": r.trained.loss,
                    "candidates": int(r.candidates.sum()),
                    "flagged": {name: len(ids) for name, ids in r.lists.items()},
                }
                for r in found.rounds
            ],
        }
