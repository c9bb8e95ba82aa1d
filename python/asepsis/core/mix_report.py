"""What a mixing did, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class MixedTensor:
    """What became of one tensor.

    Attributes
    ----------
    name
        As the tuned model names it.
    status
        ``"mixed"``, ``"kept"`` as the tuned model has it, ``"drawn"`` anew, or ``"copied"`` for what is no float.
    elements, kept
        Its number of elements, and how many of them the mask takes from the tuned model.
    reason
        Why it was not mixed, or not all of it.
    """

    name: str
    status: Literal["mixed", "kept", "drawn", "copied"]
    elements: int
    kept: int
    reason: str | None = None

    @property
    def ratio(self) -> float:
        """Realized share of the tuned model's elements."""
        return self.kept / self.elements if self.elements else 0.0


@dataclass(frozen=True, kw_only=True)
class MixReport:
    """What a mixing did.

    Attributes
    ----------
    reserve_ratio, seed
        As asked for.
    tensors
        In name order.
    matched_by
        How rows of word embeddings were matched, see :class:`asepsis.core.weights.rows.TokenRows`.
    no_reference
        Ids of tokens that the base does not know; their rows are as they were.
    """

    reserve_ratio: float
    seed: int
    tensors: tuple[MixedTensor, ...]
    matched_by: str
    no_reference: tuple[int, ...]

    @property
    def mixed(self) -> tuple[MixedTensor, ...]:
        """The tensors that were mixed."""
        return tuple(tensor for tensor in self.tensors if tensor.status == "mixed")

    @property
    def ratio(self) -> float:
        """Realized share of the tuned model's elements, over all tensors mixed."""
        return sum(t.kept for t in self.mixed) / max(1, sum(t.elements for t in self.mixed))

    @property
    def heads(self) -> tuple[str, ...]:
        """Floating tensors that the base lacks, or has in another shape."""
        return tuple(tensor.name for tensor in self.tensors if tensor.status in ("kept", "drawn"))

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "reserve_ratio": self.reserve_ratio,
            "seed": self.seed,
            "realized_ratio": self.ratio,
            "rows_matched_by": self.matched_by,
            "tokens_without_reference": len(self.no_reference),
            "heads": list(self.heads),
            "tensors": [
                {"name": t.name, "status": t.status, "elements": t.elements, "kept": t.kept, "ratio": t.ratio}
                | ({"reason": t.reason} if t.reason else {})
                for t in self.tensors
            ],
        }
