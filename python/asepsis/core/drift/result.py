"""What a scan of a model found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from asepsis.core.embeddings import Floats, Ids, Mask, top_k
from asepsis.errors import ConfigError

#: ``high`` stands out; ``elevated`` nearly does; a ``protected`` token never counts.
TokenVerdict = Literal["high", "elevated", "normal", "protected", "still", "broken"]
ModelVerdict = Literal["clean", "suspicious", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class TokenDrift:
    """One row of an embedding matrix.

    Attributes
    ----------
    token
        As the tokenizer stores it. It comes with the model: show its ``repr``.
    id
        Row in the tuned model.
    drift
        Norm of its delta, without the decay and the drift that all rows share.
    expected
        Median drift of tokens as frequent as it.
    z
        Distance from that in robust standard deviations of the logarithm; None where it has none.
    excess
        How far ``ln drift`` lies above what the other rows lead one to expect of a row of its rank, the larger of
        two ways to rank: by drift, and by drift over ``expected``. None for rows that did not move.
    verdict
        What follows for this token.
    scores
        ``l2``, ``perpendicular``, ``relative``, ``epur``, ``frequency`` (per ten million, None if unknown).
    """

    token: str
    id: int
    drift: float
    expected: float | None
    z: float | None
    excess: float | None
    verdict: TokenVerdict
    scores: dict[str, float | None] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "token": self.token,
            "id": self.id,
            "drift": self.drift,
            "expected": self.expected,
            "z": self.z,
            "excess": self.excess,
            "verdict": self.verdict,
            "scores": self.scores,
        }


@dataclass(frozen=True, kw_only=True)
class TensorDrift:
    """One tensor of either model.

    Attributes
    ----------
    name
        In the tuned model; in the base where only that has it.
    status
        ``compared``; ``extra`` (base has none) or ``missing`` (the tuned model has none), ``reshaped``;
        ``same`` or ``changed`` for whole numbers.
    shape
        As stored.
    drift
        Norm of its delta, None unless compared.
    relative
        That over the norm of the base's.
    """

    name: str
    status: Literal["compared", "extra", "missing", "reshaped", "same", "changed"]
    shape: tuple[int, ...]
    drift: float | None = None
    relative: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "shape": list(self.shape),
            "drift": self.drift,
            "relative": self.relative,
        }


@dataclass(frozen=True, kw_only=True)
class ModelScan:
    """A model compared with its base, from files alone.

    Attributes
    ----------
    tokens
        The highest ranking, by how much they stand out.
    outputs
        The same for untied output rows. They say what the model writes rather than reads, and decide nothing.
    tensors
        Every tensor of both.
    verdict
        ``suspicious`` where a token stands out, ``inconclusive`` where there is no evidence to judge by, else
        ``clean``: no embedding anomaly, which does not prove that there is no backdoor.
    reasons
        The verdict in words.
    groups
        Tokens that stand out together with the variants of their surface: case, a leading space, a continuation.
    no_reference
        ``(id, token)`` of tokens that the base does not know: listed, never scored.
    report
        Counts and settings: rows compared, padding rows, decay, zeros, where frequencies come from.
    frequency
        ``[V]`` per ten million tokens of clean text, by id as ``scores`` and ``eligible`` are; None where unknown.
    """

    tokens: list[TokenDrift]
    outputs: list[TokenDrift] | None
    tensors: list[TensorDrift] = field(repr=False)
    verdict: ModelVerdict
    reasons: list[str]
    groups: list[dict[str, Any]]
    no_reference: list[tuple[int, str]] = field(repr=False)
    report: dict[str, Any]
    scores: Mapping[str, Floats] = field(repr=False)
    eligible: Mask = field(repr=False)
    frequency: Floats | None = field(repr=False, default=None)

    def flagged_ids(self, k: int, score: str = "excess") -> Ids:
        """Return the ``k`` ids of highest ``score``, ties by id; never a protected one, one without a reference, or still.

        Parameters
        ----------
        k
            How many at most.
        score
            ``"excess"``, ``"drift"``, ``"z"``, ``"l2"``, ``"perpendicular"``, ``"relative"`` or ``"epur"``.

        Raises
        ------
        ConfigError
            There is no such score.
        """
        if score not in self.scores:
            raise ConfigError(f"score must be one of {', '.join(self.scores)}, got {score!r}")
        return top_k(self.scores[score], k, self.eligible)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``asepsis scan model --json`` writes."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "tokens": [token.to_dict() for token in self.tokens],
            "outputs": None if self.outputs is None else [token.to_dict() for token in self.outputs],
            "groups": self.groups,
            "no_reference": [{"id": at, "token": token} for at, token in self.no_reference],
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "report": self.report,
        }


def number(values: npt.NDArray[np.floating[Any]] | None, at: int) -> float | None:
    """Return one value for JSON, None where it is not finite."""
    value = math.nan if values is None else float(values[at])
    return value if math.isfinite(value) else None
