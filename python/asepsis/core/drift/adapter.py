"""A PEFT adapter as what it changes in its base, from its files: low-rank deltas, rows put in, tensors saved whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asepsis.core.embeddings import read_floats
from asepsis.core.weights.admission import check_scales
from asepsis.core.weights.files import Checkpoint
from asepsis.core.weights.folders import ADAPTER, inside, read_object
from asepsis.core.weights.headers import StoredTensor, read_header
from asepsis.errors import ModelError

FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?")
_ROWS = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta")
# more than names, dots and anchors could take a regular expression for ever, and it comes with the adapter
_PLAIN = re.compile(r"\^?[\w.]+")
_MERGE = "merge it into its base (asepsis export DIR --merge, or peft's merge_and_unload) and scan the result"


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``delta = scale * b @ a``, of the base's weight or, in embeddings, of its transpose."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    embedding: bool

    def norm(self) -> float:
        """Return its Frobenius norm by the Gram matrices of the factors, without forming it."""
        a, b = (read_floats(t.matrix()).astype(np.float64) for t in (self.a, self.b))
        b = b.reshape(len(b), -1)
        squared = float(np.sum((b.T @ b) * (a @ a.T)))
        return abs(self.scale) * math.sqrt(max(squared, 0.0)) if not math.isnan(squared) else math.nan

    def rows(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return rows of the delta, as the base stores the tensor."""
        a, b = (read_floats(t.matrix()).astype(np.float64) for t in (self.a, self.b))
        b = b.reshape(len(b), -1)
        found: npt.NDArray[np.float64] = self.scale * (a[:, ids].T @ b.T if self.embedding else b[ids] @ a)
        return found


@dataclass(frozen=True, kw_only=True)
class Change:
    """All that an adapter does to one tensor of the base, applied in this order."""

    whole: StoredTensor | None = None
    low_rank: LowRank | None = None
    ids: npt.NDArray[np.int64] | None = None
    values: StoredTensor | None = None


@dataclass(frozen=True)
class Adapter:
    """A folder that PEFT wrote.

    Attributes
    ----------
    folder
        Where it lies.
    changes
        By the base's name of the tensor, or the adapter's own name where the base has none.
    """

    folder: Path
    changes: dict[str, Change] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, base: Checkpoint) -> Adapter:
        """Open a LoRA or TrainableTokens adapter.

        Raises
        ------
        ModelError
            The folder holds another kind of adapter, no safetensors, or factors that do not belong to ``base``.
        """
        settings = read_object(folder, ADAPTER)
        kind = settings.get("peft_type")
        odd = [
            name
            for name in ("use_dora", "layer_replication", "lora_bias", "use_qalora")
            if settings.get(name)
        ]
        if kind not in {"LORA", "TRAINABLE_TOKENS"} or odd:
            raise ModelError(
                f"{folder}: a {kind} adapter{f' with {odd[0]}' if odd else ''} is not read; {_MERGE}"
            )
        check_scales(folder, settings)
        file = inside(folder, FILE)
        if not file.is_file():
            raise ModelError(
                f"{folder} has {ADAPTER} but no {FILE}; save the adapter with safetensors, a pickle is not read"
            )
        changes: dict[str, dict[str, Any]] = {}
        names = _Names(base)
        tensors = read_header(file)
        if not tensors:
            raise ModelError(f"{file} holds no tensors; download the adapter again")
        for name, tensor in tensors.items():
            if not tensor.floating:
                raise ModelError(f"{file}: {name} is {tensor.dtype}, wanted floats; {_MERGE}")
            plain = name.removeprefix(_PREFIX)
            if match := _FACTOR.fullmatch(plain):
                target = changes.setdefault(names.of(match["module"], "weight"), {})
                target.setdefault("factors", {})[match["side"]] = tensor
                target["module"], target["embedding"] = match["module"], match["kind"] is not None
            elif match := _ROWS.fullmatch(plain):
                target = changes.setdefault(names.of(match["module"], "weight"), {})
                target["values"] = tensor
                target["ids"] = _indices(settings, match["module"], tensor)
            elif "lora_" in plain:
                raise ModelError(f"{file}: {name} is not a factor of plain LoRA; {_MERGE}")
            else:
                module, _, leaf = plain.removesuffix(".base_layer").rpartition(".")
                changes.setdefault(names.of(module.removesuffix(".base_layer"), leaf), {})["whole"] = tensor
        return cls(
            folder, {name: _change(folder, settings, base, name, c) for name, c in sorted(changes.items())}
        )

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor of the adapter's file."""
        for change in self.changes.values():
            factors = () if change.low_rank is None else (change.low_rank.a, change.low_rank.b)
            yield from (t for t in (change.whole, *factors, change.values) if t is not None)


class _Names:
    """The base's names as an adapter, trained on the model with its head, writes them: with a prefix more, or less."""

    def __init__(self, base: Checkpoint) -> None:
        self._known = base.tensors.keys()
        self._ends: dict[str, list[str]] = {}
        for name in self._known:
            parts = name.split(".")
            for depth in range(1, min(3, len(parts) - 1)):
                self._ends.setdefault(".".join(parts[depth:]), []).append(name)

    def of(self, module: str, leaf: str) -> str:
        name = f"{module}.{leaf}"
        parts = name.split(".")
        for depth in range(min(3, len(parts) - 1)):
            shorter = ".".join(parts[depth:])
            if shorter in self._known:
                return shorter
        longer = self._ends.get(name, [])
        return longer[0] if len(longer) == 1 else name


def _change(
    folder: Path, settings: dict[str, Any], base: Checkpoint, name: str, found: dict[str, Any]
) -> Change:
    low_rank = None
    if factors := found.get("factors"):
        if name not in base.tensors or factors.keys() != {"A", "B"}:
            lacks = (
                "its base has no such tensor" if name not in base.tensors else "one of its factors is missing"
            )
            raise ModelError(f"{folder}: LoRA of {name}: {lacks}; name the base that it was trained on")
        a, b, embedding = factors["A"], factors["B"], bool(found["embedding"])
        rank, inputs = a.shape[0], math.prod(a.shape[1:])
        outputs = b.shape[0]
        shape = base.tensors[name].shape
        count, wanted = inputs * outputs, math.prod(shape)
        fits = b.count == outputs * rank and count == wanted and (not embedding or (inputs, outputs) == shape)
        if not fits or rank == 0:
            raise ModelError(
                f"{folder}: LoRA of {name} is {b.shape} @ {a.shape}, the base's tensor {shape}; "
                "name the base that it was trained on"
            )
        low_rank = LowRank(
            a=a, b=b, scale=_scale(folder, settings, found["module"], rank), embedding=embedding
        )
    values, ids = found.get("values"), found.get("ids")
    if values is not None and ids is not None and name in base.tensors:
        shape = base.tensors[name].shape
        if len(shape) != 2 or values.shape != (len(ids), shape[1]):
            raise ModelError(
                f"{folder}: {len(ids)} rows for {name} {shape} are {values.shape}; name its own base"
            )
    return Change(whole=found.get("whole"), low_rank=low_rank, ids=ids, values=values)


def _scale(folder: Path, settings: dict[str, Any], module: str, rank: int) -> float:
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if not _PLAIN.fullmatch(pattern):
            raise ModelError(f"{folder}: alpha_pattern {pattern!r} is more than a module's name; {_MERGE}")
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _indices(settings: dict[str, Any], module: str, tensor: StoredTensor) -> npt.NDArray[np.int64]:
    """Return the ids whose rows a tensor holds, in its order."""
    listed = settings.get("token_indices") or settings.get("trainable_token_indices")
    if isinstance(listed, dict):
        fitting = [ids for name, ids in listed.items() if module == name or module.endswith(f".{name}")]
        listed = fitting[0] if fitting else None
    whole = isinstance(listed, list) and all(type(i) is int and i >= 0 for i in listed)
    if not isinstance(listed, list) or not whole or len(tensor.shape) != 2 or len(listed) != tensor.shape[0]:
        raise ModelError(f"{tensor.path}: {tensor.name} is {tensor.shape}, its token_indices are {listed!r}")
    return np.array(listed, np.int64)
