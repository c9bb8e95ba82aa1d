"""Compare a model with its base and say whether rows of its embeddings stand out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asepsis.core.drift.adapted import adapted_rows, adapted_tensors
from asepsis.core.drift.adapter import Adapter
from asepsis.core.drift.result import ModelScan, TensorDrift, TokenDrift
from asepsis.core.drift.rows import Rows, compare_rows, score
from asepsis.core.drift.tensors import compare_all
from asepsis.core.embeddings import Floats, Ids
from asepsis.core.weights.files import Checkpoint, aligned_names
from asepsis.core.weights.find import find_checkpoint
from asepsis.core.weights.folders import ADAPTER, inside
from asepsis.core.weights.frequencies import Frequencies
from asepsis.core.weights.headers import DTYPES, StoredTensor
from asepsis.core.weights.vocabulary import Vocabulary, row_map
from asepsis.errors import ConfigError, ModelError, NoRows
from asepsis.kernels._moments import RowStats

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def scan_model(
    tuned: str | Path,
    *,
    base: str | Path,
    counts: str | Path | Mapping[Any, float] | None = None,
    corpus: Iterable[str] | None = None,
    language: str = "en",
    top: int = 50,
) -> ModelScan:
    """Compare a model with its base by token and by tensor, from files alone.

    Parameters
    ----------
    tuned
        The model in doubt: a folder with safetensors, a PEFT adapter's folder (LoRA, TrainableTokens), a ``demo:``
        name or a cached hub id.
    base
        What it was trained from, from a source that is trusted: a folder, a ``demo:`` name or a cached hub id.
    counts
        A JSON file ``{token or id of base: count}``, or such a mapping, of clean text.
    corpus
        Clean texts to count tokens in. Without counts and corpus the word list of the package ``wordfreq`` tells
        how frequent a token is, where that is installed.
    language
        Of that word list.
    top
        How many tokens to list.

    Returns
    -------
    ModelScan

    Raises
    ------
    ModelError
        A model cannot be read, has weights that are not finite, or does not belong to its base.
    NoRows
        The two have no token in common.
    ConfigError
        ``top`` is negative.
    """
    if top < 0:
        raise ConfigError(f"top must be at least 0, got {top}")
    with contextlib.ExitStack() as stack:
        base_folder = stack.enter_context(find_checkpoint(base))
        folder = stack.enter_context(find_checkpoint(tuned))
        origin = Checkpoint.open(base_folder)
        theirs = Vocabulary.load(base_folder)
        has_own = any(inside(folder, name).is_file() for name in _TOKENIZERS)
        ours = Vocabulary.load(folder) if has_own else theirs
        # what cannot be read is refused before the seconds that counting takes
        opened = Adapter.open(folder, origin) if (folder / ADAPTER).is_file() else Checkpoint.open(folder)
        known = Frequencies.of(theirs, counts=counts, corpus=corpus, language=language)
        scene = _Scene(origin, ours, theirs, known, top)
        found = scene.adapter(opened) if isinstance(opened, Adapter) else scene.checkpoint(opened)
        found.report["tokenizer"] = "its own" if has_own else "the base's, the model brings none"
        return found


@dataclass(frozen=True)
class _Scene:
    base: Checkpoint
    ours: Vocabulary
    theirs: Vocabulary
    known: Frequencies
    top: int

    def checkpoint(self, tuned: Checkpoint) -> ModelScan:
        names = aligned_names(tuned, self.base)
        if not any(names.values()):
            raise ModelError(
                f"{tuned.folder} and {self.base.folder} have no tensor in common; name the base it was tuned from"
            )
        ours, theirs = self._words(tuned)
        pairs, alone = self._pairs(ours.shape[0], theirs.shape[0])
        stats, rest = compare_rows(theirs, ours, pairs, tied=tuned.tied and self.base.tied)
        rows = self._score(stats, rest, ours, pairs)
        outputs, known = None, {ours.name: stats}
        if tuned.output_embeddings is not None and self.base.output_embeddings is not None:
            left, right = (
                self.base.tensors[self.base.output_embeddings],
                tuned.tensors[tuned.output_embeddings],
            )
            if left.shape[1] == right.shape[1]:
                compared, _ = compare_rows(left, right, pairs, tied=False)
                outputs = self._score(compared, compared, right, pairs)
                known[right.name] = compared
        tensors = compare_all(tuned, self.base, names, known)
        return self._found(rows, outputs, tensors, alone, ours.shape[0], tied=tuned.tied)

    def adapter(self, adapter: Adapter) -> ModelScan:
        words = self.base.tensors[self.base.input_embeddings]
        change = adapter.changes.get(words.name)
        whole = None if change is None else change.whole
        if whole is not None and (len(whole.shape) != 2 or whole.shape[1] != words.shape[1]):
            raise ModelError(
                f"{adapter.folder}: its embeddings are {whole.shape}, the base's {words.shape}; name its own base"
            )
        n = words.shape[0] if whole is None else whole.shape[0]
        pairs, alone = self._pairs(n, words.shape[0])
        stats = adapted_rows(adapter, self.base, pairs)
        rows = self._score(stats, stats, words, pairs)
        tensors = adapted_tensors(adapter, self.base, stats)
        return self._found(rows, None, tensors, alone, n, tied=False)

    def _words(self, tuned: Checkpoint) -> tuple[StoredTensor, StoredTensor]:
        ours, theirs = tuned.tensors[tuned.input_embeddings], self.base.tensors[self.base.input_embeddings]
        if ours.count == 0:
            raise ModelError(f"{tuned.folder}: {ours.name} is empty, {ours.shape}; download the model again")
        if ours.shape[1] != theirs.shape[1]:
            raise ModelError(
                f"{tuned.folder} has embeddings of width {ours.shape[1]}, {self.base.folder} of {theirs.shape[1]}; "
                "name the base it was tuned from"
            )
        return ours, theirs

    def _pairs(self, tuned_rows: int, base_rows: int) -> tuple[Ids, Ids]:
        pairs, alone = row_map(self.ours, self.theirs, tuned_rows=tuned_rows, base_rows=base_rows)
        if len(pairs) == 0:
            raise NoRows(
                f"no token of {self.ours.folder} is one of {self.theirs.folder}, so no row has a reference; "
                "name the base it was tuned from"
            )
        return pairs, alone

    def _score(self, stats: RowStats, rest: RowStats, tensor: StoredTensor, pairs: Ids) -> Rows:
        if broken := int((stats.non_finite > 0).sum()):
            raise ModelError(
                f"{tensor.name}: {broken:,} rows have values that are NaN or infinite, here or in the base; a model with "
                "such weights does not work and cannot be judged. Download it again"
            )
        protected = np.isin(pairs[:, 1], sorted(self.ours.protected_like(self.theirs)))
        f = self.known.mapped(pairs, len(self.ours)).per_ten_million
        return score(
            stats, rest, DTYPES[tensor.dtype], pairs[:, 1], None if f is None else f[pairs[:, 1]], protected
        )

    def _found(
        self,
        rows: Rows,
        outputs: Rows | None,
        tensors: list[TensorDrift],
        alone: Ids,
        matrix_rows: int,
        *,
        tied: bool,
    ) -> ModelScan:
        ours = self.ours
        tokens = rows.ranked(ours.tokens, self.top)
        size = len(ours)
        strange = sorted(ours.special - ours.protected_like(self.theirs) - set(alone.tolist()))
        report = {
            "rows": len(rows.ids),
            "moved": int(rows.stats.moved.sum()),
            "counted": int(rows.eligible.sum()),
            "no_reference": len(alone),
            "padding_rows": matrix_rows - len(rows.ids) - len(alone),
            "zeros": float(rows.stats.zeros.sum() / max(1, len(rows.ids) * rows.stats.width)),
            "decay": rows.motion.gamma,
            "tied": tied,
            "frequencies": self.known.source,
            "moved_ids": int((self._reference_ids(rows) != rows.ids).sum()),
            "special_here_only": [ours.tokens[at] for at in strange],
        }
        reasons = list(rows.judgment.reasons)
        if len(alone):
            reasons.append(f"{len(alone)} tokens are new: without rows in the base they were not scored.")
        if strange:
            reasons.append(
                f"The model's tokenizer calls {len(strange)} tokens special that are words in its base; they were scored."
            )
        return ModelScan(
            tokens=tokens,
            outputs=None if outputs is None else outputs.ranked(ours.tokens, self.top),
            tensors=tensors,
            verdict=rows.judgment.verdict,
            reasons=reasons,
            groups=_groups(ours, tokens, rows),
            no_reference=[(int(at), ours.tokens[at] or "") for at in alone.tolist()],
            report=report,
            scores={name: _spread(values, rows.ids, size) for name, values in rows.scores.items()},
            eligible=_spread(rows.eligible.astype(np.float64), rows.ids, size) == 1,
        )

    def _reference_ids(self, rows: Rows) -> Ids:
        ids = self.theirs.ids
        return np.array([ids[self.ours.tokens[at] or ""] for at in rows.ids.tolist()], np.int64)


def _spread(values: Floats, ids: Ids, size: int) -> Floats:
    found = np.full(size, np.nan)
    found[ids] = values
    return found


def _groups(vocabulary: Vocabulary, tokens: list[TokenDrift], rows: Rows) -> list[dict[str, Any]]:
    """Variants of the surfaces that stand out: a trigger may be cased, glued or after a space."""
    wanted = {vocabulary.surface(t.id) for t in tokens if t.verdict in ("high", "elevated")}
    if not wanted:
        return []
    found: dict[str, list[int]] = {}
    for place, at in enumerate(rows.ids.tolist()):
        if (surface := vocabulary.surface(at)) in wanted:
            found.setdefault(surface, []).append(place)
    groups = []
    for surface, places in found.items():
        drifts = rows.motion.drift[places]
        members = [
            {
                "token": vocabulary.tokens[int(rows.ids[p])],
                "id": int(rows.ids[p]),
                "drift": float(rows.motion.drift[p]),
            }
            for p in places
        ]
        groups.append({"surface": surface, "drift": float(drifts.max()), "members": members})
    return sorted(groups, key=lambda group: (-group["drift"], group["surface"]))
