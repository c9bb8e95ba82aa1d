"""BTU's first stage: let word embeddings learn from the data, round after round, and flag the tokens that moved most."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asepsis.core.embeddings import conditioned_z, top_k
from asepsis.core.exposure import is_tied, word_embeddings
from asepsis.core.phases import (
    Encode,
    Encoded,
    Ids,
    Network,
    Remember,
    Request,
    Restore,
    Touch,
    Train,
    Trainable,
    Trained,
)
from asepsis.core.weights import Vocabulary
from asepsis.data import Data
from asepsis.defenses._btu_config import BtuConfig
from asepsis.errors import DefenseInert
from asepsis.kernels import row_stats

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_FARTHEST = 100.0


@dataclass(frozen=True)
class Round:
    """One exposure and what it flagged.

    Attributes
    ----------
    name : str
    l2, z : ndarray [V]
        Distance each row moved, and that conditioned on clean frequency (None where none is known).
    candidates : ndarray of bool [V]
        Tokens that occurred, moved and may be flagged.
    lists : dict
        Flagged ids by the score that flagged them, best first.
    margins : dict
        Per list, each flagged token's score over that of the best token the list left out.
    trained : Trained
    """

    name: str
    l2: Floats
    z: Floats | None
    candidates: Mask
    lists: dict[str, Ids]
    margins: dict[str, Floats]
    trained: Trained


@dataclass
class Exposure:
    """All rounds.

    Attributes
    ----------
    encoded : Encoded
        The rows as tokens.
    rounds : list of Round
    largest_clean_z : dict
        Per network, the largest z trusted rows reached; empty where none were exposed.
    """

    encoded: Encoded
    rounds: list[Round] = field(default_factory=list)
    largest_clean_z: dict[str, float] = field(default_factory=dict)

    @property
    def flagged(self) -> Ids:
        """Union of all lists, ascending."""
        lists = [ids for r in self.rounds for ids in r.lists.values()]
        return np.unique(np.concatenate([np.empty(0, np.int64), *lists]))

    def margins(self) -> dict[int, float]:
        """Return each flagged token's largest margin over lists and rounds."""
        found: dict[int, float] = {}
        for r in self.rounds:
            for name, ids in r.lists.items():
                for token, margin in zip(ids.tolist(), r.margins[name].tolist(), strict=True):
                    found[token] = max(margin, found.get(token, 0.0))
        return found

    def suspicion(self) -> NDArray[np.float32]:
        """Return the largest margin among each row's tokens [N]; 0 for a row without a flagged token."""
        by_token = np.zeros(int(self.encoded.ids.max(initial=0)) + 1)
        for token, margin in self.margins().items():
            if token < len(by_token):
                by_token[token] = margin
        found = np.zeros(len(self.encoded.starts) - 1, np.float32)
        np.maximum.at(found, self.encoded.row_of, by_token[self.encoded.ids])
        return found


class Exposer:
    """Runs the rounds of one model.

    Parameters
    ----------
    config : BtuConfig
    model : Module
        Left as it was.
    data : Data
    rows : ids
        Rows to expose on.
    protected : ndarray of bool [V]
        Tokens that may not be flagged.
    frequencies : ndarray [V] or None
        Expected count per ten million in clean text.
    clean : Data or None
        Trusted rows to calibrate on.
    """

    def __init__(
        self,
        config: BtuConfig,
        model: Any,
        data: Data,
        *,
        rows: Ids,
        protected: Mask,
        frequencies: Floats | None,
        clean: Data | None,
    ) -> None:
        self.config, self.model, self.data, self.rows = config, model, data, rows
        self.protected, self.frequencies, self.clean = protected, frequencies, clean
        self.words = word_embeddings(model)
        self.before = self.words.detach().to("cpu", copy=True)
        self.tied = is_tied(model)

    def run(self) -> Generator[Request, Any, Exposure]:
        """Run the rounds of the configured mode."""
        encoded: Encoded = yield Encode()
        positions = np.zeros(len(self.data), bool)
        positions[self.data.positions(self.rows)] = True
        self._tokens = encoded.ids[positions[encoded.row_of]]
        found = Exposure(encoded)
        rounds = self._reference(found) if self.config.mode == "reference" else self._robust(found)
        yield from rounds
        return found

    def _robust(self, found: Exposure) -> Generator[Request, Any, None]:
        yield from self._round(found, "word embeddings alone", "full")
        last: Network = "full"
        if self.data.n_classes is not None:
            last = "pooled"
            yield from self._round(found, "word embeddings and a new head on their mean", "pooled")
        yield from self._round(found, "again without what is flagged so far", last, dropped=found.flagged)

    def _reference(self, found: Exposure) -> Generator[Request, Any, None]:
        # the order of the authors' code; the union does not depend on it
        yield from self._round(
            found, "embedding block and a new head on its mean", "pooled over padding", "all"
        )
        dropped = found.flagged
        name = "again without what is flagged so far"
        yield from self._round(found, name, "pooled over padding", "all", dropped=dropped)
        yield from self._round(found, "word embeddings alone", "full")

    def _round(
        self,
        found: Exposure,
        name: str,
        network: Network,
        trainable: Trainable = "embeddings",
        *,
        dropped: Ids | None = None,
    ) -> Generator[Request, Any, None]:
        c = self.config
        seen = np.zeros(len(self.before), bool)
        seen[self._tokens] = True
        if dropped is not None:
            seen[dropped] = False
        if not (seen & ~self.protected).any():
            return  # a small vocabulary may have no token left
        l2, trained = yield from self._expose(
            Train(
                name=f"exposure: {name}",
                rows=self.rows,
                epochs=c.exposure_epochs,
                learning_rate_scale=c.exposure_learning_rate_scale,
                decay_steps=0,
                weight_decay=None if c.mode == "reference" else 0.0,
                network=network,
                trainable=trainable,
                drop_tokens=dropped,
            )
        )
        candidates = seen & ~self.protected & np.isfinite(l2) & (l2 > 0)
        if not candidates.any():
            raise DefenseInert(
                f"exposure: {name}: no word embedding moved, so there is no evidence and nothing is edited; raise the "
                "learning rate, or load the model in float32"
            )
        z = None
        if self.frequencies is not None and c.score != "l2" and c.mode == "robust":
            z = self._z(l2, seen)
            if self.clean is not None and c.calibrate and network not in found.largest_clean_z:
                found.largest_clean_z[network] = yield from self._clean_z(network, trainable, trained.steps)
        lists = {} if c.score == "z" else {"l2": (l2, candidates)}
        if z is not None:
            least = c.calibration_margin * found.largest_clean_z.get(network, -np.inf)
            lists["z"] = (z, candidates & (z > least))
        chosen, margins = {}, {}
        for score_name, (score, eligible) in lists.items():
            ids = top_k(score, c.per_list(len(score)), eligible)
            margin = _margins(score, ids, candidates, floor=1.0 if score_name == "z" else 0.0)
            chosen[score_name] = ids[margin >= c.least_margin]
            margins[score_name] = margin[margin >= c.least_margin]
        found.rounds.append(Round(name, l2, z, candidates, chosen, margins, trained))

    def _clean_z(self, network: Network, trainable: Trainable, steps: int) -> Generator[Request, Any, float]:
        """Return the largest z that tokens reach in as many steps on trusted rows."""
        assert self.clean is not None
        encoded: Encoded = yield Encode(data=self.clean)
        seen = np.zeros(len(self.before), bool)
        seen[encoded.ids] = True
        l2, _ = yield from self._expose(
            Train(
                name="exposure: clean rows",
                data=self.clean,
                steps=steps,
                learning_rate_scale=self.config.exposure_learning_rate_scale,
                decay_steps=0,
                weight_decay=0.0,
                network=network,
                trainable=trainable,
            )
        )
        z = self._z(l2, seen)
        usable = z[seen & ~self.protected & np.isfinite(z)]
        return float(usable.max(initial=-np.inf))

    def _z(self, l2: Floats, seen: Mask) -> Floats:
        # rows that all moved alike leave no spread to measure in; so far out one number is as good as another
        return np.clip(conditioned_z(l2, self.frequencies, seen), -_FARTHEST, _FARTHEST)

    def _expose(self, request: Train) -> Generator[Request, Any, tuple[Floats, Trained]]:
        """Train, measure how far each row moved, and put everything back."""
        start = (yield Remember()) if request.trainable == "all" else None
        trained: Trained = yield request
        moved: Floats = yield Touch(name=f"{request.name}: measure and put back", do=self._measure)
        if start is not None:
            yield Restore(weights=start)
        return moved, trained

    def _measure(self) -> Floats:
        after = self.words.detach().cpu()
        stats = row_stats(self.before, after, columns=self.tied)
        if self.tied and stats.moved.any():
            # the output layer is the same matrix: its gradient moves all rows alike, whatever they stand for
            stats = row_stats(self.before + torch.from_numpy(stats.column_mean).to(self.before.dtype), after)
        with torch.no_grad():
            self.words.copy_(self.before)
        return stats.l2


def _margins(score: Floats, chosen: Ids, candidates: Mask, *, floor: float) -> Floats:
    """Return each chosen token's score over that of the best candidate left out, ``floor`` at least."""
    left = candidates & np.isfinite(score)
    left[chosen] = False
    best = max(float(score[left].max() if left.any() else score[chosen].min(initial=np.inf)), floor)
    return np.asarray(score[chosen] / best)


def token_report(found: Exposure, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Describe every flagged token, JSON-ready, most suspicious first."""
    margins, flagged = found.margins(), found.flagged
    ids, row_of = found.encoded.ids, found.encoded.row_of
    described = []
    for token in flagged.tolist():
        here = ids == token
        rounds = [
            {
                "round": r.name,
                "lists": [name for name, listed in r.lists.items() if token in listed],
                "l2": _number(r.l2[token]),
                "z": None if r.z is None else _number(r.z[token]),
            }
            for r in found.rounds
        ]
        described.append(
            {
                "token": vocabulary.tokens[token] if token < len(vocabulary) else None,
                "id": token,
                "margin": round(margins[token], 4),
                "rows": len(np.unique(row_of[here])),
                "rounds": [r for r in rounds if r["lists"]],
            }
        )
    return sorted(described, key=lambda entry: (-entry["margin"], entry["id"]))


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
