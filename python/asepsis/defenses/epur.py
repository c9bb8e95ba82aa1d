"""E-PUR: put the word embeddings of tokens that moved more than their frequency explains back to the pretrained ones.

Zhang, Lyu, Ma, Wang, Sun: *Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models*, Findings of EMNLP 2022.

The idea: a token is updated about as often as it is read, so how far its embedding moved grows like the logarithm of
its frequency. A trigger is rare in ordinary text and was trained often: its distance over that logarithm stands out.

Deviations from the paper
-------------------------
Its body was not at hand when this was written, so these are choices where it may say otherwise.

* *Frequencies are expected counts in ten million tokens* of ordinary text, from counts or a corpus the user trusts or
  from a word list; where none is known all tokens count as rare and the score is the distance, which the outcome
  says. They are never counted in training data: poison inflates the count of its own trigger.
* *Distances are freed of what is no evidence*: weight decay, and for tied embeddings the drift that all rows share.
  Rows within rounding are not ranked. Rows are matched by token, not by position.
* *Special tokens and bytes are never reset*, whatever their score.
* *0.66 % of the vocabulary, at most 200 tokens*: 200 of BERT's.

When not to trust it
--------------------
The number reset does not hang on the evidence: a clean model loses the tuning of as many words, and the outcome is no
verdict on the model. It undoes what sits in word embeddings (embedding poisoning and surgery). Where all weights were
tuned on poisoned rows the encoder knows the trigger by its pretrained row too: measured on the packaged model, the
trigger ranks first and is reset, and the attack succeeds as before. A trigger made of common words (a sentence) ranks
low; a backdoor in style, syntax or the encoder leaves no trace in word embeddings at all. Use it with Fine-mixing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asepsis.core.drift.rows import compare_rows
from asepsis.core.embeddings import Floats, Mask, Motion, epur_score, motion, top_k
from asepsis.core.evidence import moved_tokens
from asepsis.core.phases import Acted, Outcome, Rewrite, Script, Train
from asepsis.core.reset import reset_rows
from asepsis.core.weights import Checkpoint, Frequencies, Vocabulary
from asepsis.core.weights.headers import DTYPES
from asepsis.core.weights.rows import TokenRows, vocabulary_of
from asepsis.core.weights.vocabulary import Ids
from asepsis.data import Data
from asepsis.defenses._epur_config import EpurConfig
from asepsis.defenses.base import Defense, Paper, Threat
from asepsis.errors import DefenseInert, MissingReference, ModelError

log = logging.getLogger("asepsis")


@dataclass(frozen=True)
class _Evidence:
    """Scores of the paired tokens, ``[N]`` in the order of ``rows.pairs``."""

    rows: TokenRows
    vocabulary: Vocabulary
    motion: Motion
    frequency: Floats | None
    source: str
    score: Floats
    eligible: Mask

    @property
    def ids(self) -> Ids:
        """Ids of the tuned model."""
        return self.rows.pairs[:, 1]


class Epur(Defense[EpurConfig]):
    """Embedding purification. The module's docstring says what differs from the paper."""

    paper = Paper(
        title="Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models",
        authors="Zhiyuan Zhang, Lingjuan Lyu, Xingjun Ma, Chenguang Wang, Xu Sun",
        venue="Findings of the Association for Computational Linguistics: EMNLP",
        year=2022,
        arxiv="2210.09545",
    )
    threat = Threat.WEIGHTS
    needs = frozenset({"base"})
    config_type = EpurConfig
    cost = "reads both checkpoints once and writes one; no training unless tune_epochs is set"

    def repair(self, victim: Checkpoint, rows: Data | None) -> Script:
        """Score, reset the tokens that stand out, tune where that is asked for."""
        c, base = self.config, self.given.base
        if base is None:
            raise MissingReference("epur needs base; pass it to purify()")
        if c.tune_epochs and rows is None:
            raise MissingReference(
                "epur with tune_epochs needs clean rows; pass clean=..., or set tune_epochs=0"
            )
        found = self._evidence(base, victim)
        k = c.k_of(len(found.vocabulary))
        flagged = top_k(found.score, k, found.eligible)
        ids = found.ids[flagged]
        edited = yield Rewrite(
            name=f"reset {len(ids)} tokens",
            edit=partial(reset_rows, base, victim, rows=found.rows, ids=np.sort(ids)),
        )
        steps = 0
        if c.tune_epochs:
            trained = yield Train(name="tune after reset", epochs=c.tune_epochs, warmup=c.warmup)
            steps = trained.steps
        report = {
            "top_k": k,
            "reset": [_described(found, at) for at in flagged.tolist()],
            "tensors": list(edited),
            "tokens": {
                "examined": len(found.ids),
                "moved": int(found.motion.seen.sum()),
                "eligible": int(found.eligible.sum()),
                "protected": len(found.vocabulary.protected),
                "without_reference": len(found.rows.no_reference),
            },
            "frequencies": found.source,
            "decay": found.motion.gamma,
            "rows_matched_by": found.rows.matched_by,
            "tuned": bool(c.tune_epochs),
        }
        seen = found.eligible
        moved = moved_tokens(
            found.ids[seen],
            found.motion.drift[seen],
            None if found.frequency is None else found.frequency[seen],
        )
        return Outcome(acted=Acted(tokens=len(ids), steps=steps), evidence=moved, report=report)

    def _evidence(self, base: Checkpoint, victim: Checkpoint) -> _Evidence:
        rows = TokenRows.of(victim, base)
        words, original = victim.tensors[victim.input_embeddings], base.tensors[base.input_embeddings]
        if words.shape[1:] != original.shape[1:]:
            raise ModelError(
                f"word embeddings are {list(words.shape)} in {victim.folder} and {list(original.shape)} in {base.folder}; "
                "name the model it was tuned from as the base"
            )
        theirs = vocabulary_of(base, rows.base_rows)
        ours = theirs if rows.matched_by == "position" else vocabulary_of(victim, rows.tuned_rows)
        stats, rest = compare_rows(original, words, rows.pairs, tied=victim.tied and base.tied)
        if stats.non_finite.any():
            raise ModelError(
                f"{int((stats.non_finite > 0).sum())} word embeddings of {victim.folder} or its base are not finite; the "
                "model is broken: download it again"
            )
        moved = motion(rest, DTYPES[words.dtype])
        protected = np.isin(rows.pairs[:, 1], list(ours.protected_like(theirs)))
        eligible = moved.seen & ~protected
        if not eligible.any():
            raise DefenseInert(
                f"no evidence, no edit: the word embeddings of {victim.folder} are those of {base.folder}, up to rounding. "
                "Frozen embeddings and adapters leave none; use finemixing, and merge an adapter first"
            )
        known = Frequencies.of(
            theirs, counts=self.given.counts, corpus=self.given.corpus, language=self.config.language
        ).mapped(rows.pairs, rows.tuned_rows)
        if known.per_ten_million is None:
            log.warning("epur: tokens are ranked by distance alone, no frequencies: %s", known.source)
        frequency = None if known.per_ten_million is None else known.per_ten_million[rows.pairs[:, 1]]
        score = epur_score(moved.drift, frequency, floor=self.config.floor)
        return _Evidence(rows, ours, moved, frequency, known.source, score, eligible)


def _described(found: _Evidence, at: int) -> dict[str, Any]:
    """Return what is known of a token that was reset; its string comes from the model, so it is for repr."""
    token_id = int(found.ids[at])
    return {
        "token": found.vocabulary.tokens[token_id],
        "id": token_id,
        "score": float(found.score[at]),
        "drift": float(found.motion.drift[at]),
        "frequency": None if found.frequency is None else float(found.frequency[at]),
    }
