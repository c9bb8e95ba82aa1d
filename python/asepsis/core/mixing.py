"""Mix a tuned model with the model it was tuned from, from files to a file: neither is ever loaded.

Every element of every tensor that both have is taken from one of the two, whole and by chance (see
:func:`asepsis.kernels.mix`). Nothing is rescaled: the expectation is ``base + reserve_ratio (tuned - base)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from asepsis.core.folders import whole_folder
from asepsis.core.mix_report import MixedTensor, MixReport
from asepsis.core.weights import Checkpoint, StoredTensor, aligned_names
from asepsis.core.weights.rewrite import (
    CHUNK,
    Bytes,
    check_finite,
    check_stored,
    copy_stored,
    rewrite,
    rounded,
    stored_bytes,
)
from asepsis.core.weights.rows import TokenRows
from asepsis.core.weights.write import SIZES
from asepsis.errors import CheckpointError, DefenseInert, ModelError
from asepsis.kernels import mix
from asepsis.kernels.mixing import tensor_key

Head: TypeAlias = Literal["keep", "reinit"]


@dataclass(frozen=True)
class Mixing:
    """Two checkpoints found fit to be mixed; :meth:`write` does it, as often as wanted.

    Attributes
    ----------
    base, tuned
        The model it was tuned from, and the model that was handed to us.
    partners
        By name of tuned: the tensor of base it is mixed with, or the reason why it is not.
    rows
        Which rows of the word embeddings belong together.
    """

    base: Checkpoint
    tuned: Checkpoint
    partners: dict[str, StoredTensor | str] = field(repr=False)
    rows: TokenRows = field(repr=False)

    @classmethod
    def of(cls, base: Checkpoint, tuned: Checkpoint) -> Mixing:
        """Find what belongs together, and check it, reading both once.

        Raises
        ------
        ModelError
            A weight is NaN or infinite, or the two are no versions of one model.
        DefenseInert
            No tensor differs, so there is nothing that mixing could remove.
        """
        rows = TokenRows.of(tuned, base)
        names = aligned_names(tuned, base)
        partners: dict[str, StoredTensor | str] = {}
        for name, tensor in tuned.tensors.items():
            original = _original(tuned, name)
            partner = names[original]
            other = None if partner is None else base.tensors[partner]
            if not tensor.floating:
                partners[name] = "no floats"
            elif other is None or not other.floating:
                partners[name] = "not in the base"
            elif other.shape != tensor.shape and not _by_token(original, tensor, other, rows):
                partners[name] = f"shape {list(tensor.shape)}, {list(other.shape)} in the base"
            else:
                partners[name] = other
        mixing = cls(base, tuned, partners, rows)
        mixing._refuse_strangers()
        mixing._check()
        return mixing

    def write(
        self,
        output: Path,
        *,
        reserve_ratio: float,
        seed: int,
        head: Head = "keep",
        progress: Callable[[int, int], None] | None = None,
    ) -> MixReport:
        """Write the mixed checkpoint into an empty folder.

        Parameters
        ----------
        output
            An empty folder.
        reserve_ratio
            Share of elements taken from the tuned model, in [0, 1].
        seed
            Of the masks. Under one seed a smaller ratio takes a part of what a larger one takes.
        head
            What the base lacks: keep it as the tuned model has it, or draw it anew.
        progress
            Called with (tensors done, of).
        """
        done: list[MixedTensor] = []

        def fill(tensor: StoredTensor, region: Bytes) -> None:
            done.append(self._fill(tensor, region, reserve_ratio, seed, head))
            if progress is not None:
                progress(len(done), len(self.tuned.tensors))

        rewrite(self.tuned, output, fill)
        return MixReport(
            reserve_ratio=reserve_ratio,
            seed=seed,
            tensors=tuple(done),
            matched_by=self.rows.matched_by,
            no_reference=tuple(self.rows.no_reference.tolist()),
        )

    def _fill(self, tensor: StoredTensor, region: Bytes, ratio: float, seed: int, head: Head) -> MixedTensor:
        partner, n = self.partners[tensor.name], tensor.count
        made = partial(MixedTensor, name=tensor.name, elements=n)
        if isinstance(partner, StoredTensor):
            key = tensor_key(_original(self.tuned, tensor.name))
            size = SIZES[tensor.dtype]
            kept, at = 0, 0
            for reference, tuned in self._parts(tensor, partner):
                out = region[at : at + len(tuned)]
                start = at // size
                kept += mix(
                    reference,
                    tuned,
                    out,
                    item_size=size,
                    seed=seed,
                    key=key,
                    reserve_ratio=ratio,
                    start=start,
                )
                at += len(tuned)
            unmatched = self._mapped(tensor, partner) and len(self.rows.no_reference) > 0
            return made(
                status="mixed", kept=kept, reason="rows the base lacks are kept" if unmatched else None
            )
        if tensor.floating and head == "reinit":
            drawn = _drawn(tensor, seed, self.tuned.setting("initializer_range"))
            region[:] = rounded(drawn.view(np.uint8), "F32", tensor.dtype)
            return made(status="drawn", kept=0, reason=partner)
        copy_stored(tensor, region)
        return made(status="kept" if tensor.floating else "copied", kept=n, reason=partner)

    def _parts(self, tensor: StoredTensor, partner: StoredTensor) -> Any:
        """Yield (base, tuned) bytes of a tensor part by part, in the tuned dtype and in the tuned order of rows."""
        tuned, base = stored_bytes(tensor), stored_bytes(partner)
        width, other = SIZES[tensor.dtype], SIZES[partner.dtype]
        if not self._mapped(tensor, partner):
            step = CHUNK // 8
            for first in range(0, tensor.count, step):
                last = min(first + step, tensor.count)
                reference = rounded(base[first * other : last * other], partner.dtype, tensor.dtype)
                yield reference, tuned[first * width : last * width]
            return
        columns = tensor.count // tensor.shape[0]
        tuned, base = tuned.reshape(-1, columns * width), base.reshape(-1, columns * other)
        step = max(1, CHUNK // (8 * columns))
        for first in range(0, len(tuned), step):
            part = tuned[first : first + step]
            lower, upper = np.searchsorted(self.rows.pairs[:, 1], (first, first + len(part)))
            pairs = self.rows.pairs[lower:upper]
            reference = np.array(part)  # rows without a partner are the same on both sides
            found = np.ascontiguousarray(base[pairs[:, 0]])
            reference[pairs[:, 1] - first] = rounded(found.ravel(), partner.dtype, tensor.dtype).reshape(
                -1, columns * width
            )
            yield reference.ravel(), part.ravel()

    def _mapped(self, tensor: StoredTensor, partner: StoredTensor) -> bool:
        return not self.rows.straight and _by_token(
            _original(self.tuned, tensor.name), tensor, partner, self.rows
        )

    def _refuse_strangers(self) -> None:
        floats = [t for t in self.tuned.tensors.values() if t.floating]
        paired = sum(t.count for t in floats if isinstance(self.partners[t.name], StoredTensor))
        if 2 * paired < sum(t.count for t in floats):
            alone = [t.name for t in floats if isinstance(self.partners[t.name], str)]
            raise ModelError(
                f"{self.tuned.folder} has {len(alone)} tensors that {self.base.folder} lacks or has in another shape, more than "
                f"half of the weights ({', '.join(alone[:3])}, ...): what is not mixed keeps its backdoor. Name the model it "
                "was tuned from as the base"
            )

    def _check(self) -> None:
        differ = False
        for name, tensor in self.tuned.tensors.items():
            if not tensor.floating:
                continue
            partner = self.partners[name]
            if isinstance(partner, str):
                check_stored(tensor)
                continue
            for reference, tuned in self._parts(tensor, partner):
                check_finite(tuned, tensor.dtype, f"{tensor.path.name}: {name}")
                check_finite(reference, tensor.dtype, f"{partner.path}: {partner.name}")
                differ = differ or not np.array_equal(reference, tuned)
        if not differ:
            raise DefenseInert(
                f"{self.tuned.folder} is {self.base.folder} in every weight they share: there is nothing to mix. Name the "
                "model it was tuned from as the base; merge an adapter into the model first (asepsis export --merge)"
            )


def mix_checkpoints(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    output: str | Path,
    *,
    reserve_ratio: float,
    seed: int = 0,
    head: Head = "keep",
) -> MixReport:
    """Mix two checkpoints into a new folder, which appears whole or not at all.

    Parameters
    ----------
    base, tuned
        Folders with safetensors: the model it was tuned from, and the model that was handed to us.
    output
        A folder that does not exist, or is empty.
    reserve_ratio
        Share of elements taken from ``tuned``, in [0, 1]. 0 and 1 are copies of one side, but for what only ``tuned``
        has.
    seed
        Of the masks.
    head
        What the base lacks, a classifier's head: kept as it is, or drawn anew.

    Returns
    -------
    MixReport
        Realized ratios, and what was not mixed.

    Raises
    ------
    ModelError
        A folder holds no whole checkpoint, a weight is not finite, or the two have nothing in common.
    DefenseInert
        The two are the same.
    CheckpointError
        ``output`` holds something.
    """
    sides = [side if isinstance(side, Checkpoint) else Checkpoint.open(side) for side in (base, tuned)]
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not empty; name a folder that does not exist")
    mixing = Mixing.of(*sides)
    with whole_folder(target) as scratch:
        return mixing.write(scratch, reserve_ratio=reserve_ratio, seed=seed, head=head)


def _original(checkpoint: Checkpoint, name: str) -> str:
    """Return the name under which a tensor is mixed: tied tensors that are stored twice have one mask and one base."""
    return checkpoint.input_embeddings if name in checkpoint.tied_copies else name


def _by_token(name: str, tensor: StoredTensor, other: StoredTensor, rows: TokenRows) -> bool:
    """Whether the rows of a tensor are tokens on both sides: embeddings, output weights and their biases."""
    per_token = tensor.shape[:1] == (rows.tuned_rows,) and other.shape[:1] == (rows.base_rows,)
    if not per_token or tensor.shape[1:] != other.shape[1:]:
        return False
    if "position" in name:
        return False
    words = ("embed", "wte", "shared", "lm_head", "decoder", "predictions", "projector", "output")
    return any(word in name for word in words)


def _drawn(tensor: StoredTensor, seed: int, scale: Any) -> Any:
    """A new head: weights normal as transformers draws them, biases zero."""
    if len(tensor.shape) < 2:
        return np.zeros(tensor.count, np.float32)
    width = float(scale) if isinstance(scale, (int, float)) and math.isfinite(scale) else 0.02
    rng = np.random.default_rng([seed, tensor_key(tensor.name)])
    return rng.standard_normal(tensor.count, np.float32) * np.float32(width)
