"""The per-sample loss ledger: one loss per sample and epoch, and scores that rank by the whole trajectory.

A backdoor is learned before the task is, so early in training the poisoned rows have the lowest losses. The
ledger takes losses batch by batch in any order, and tells a loss that is missing from one that is NaN.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from asepsis import _native
from asepsis.core import ledger_file
from asepsis.errors import LedgerError

Reducer: TypeAlias = Literal[
    "last", "ema", "mean", "mean_rank", "rank_ema", "auc_loss", "first_below", "drop", "seep"
]
#: Bytes of columns that stay in memory.
MEMORY_LIMIT = 4 << 30
Array: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What one epoch saw."""

    observed: int  # samples with a loss
    nan: int  # of these, with a NaN loss
    inf: int  # of these, with an infinite loss
    n: int  # samples of the ledger


class LossLedger:
    """Losses of ``n`` samples over epochs.

    Samples are named by position, ``0..n-1``. Losses collect in an open column until :meth:`end_epoch` closes
    it; all else reads closed columns only. Memory is 4.125 bytes per sample and epoch, and 20 bytes per
    sample besides; 28 more while :meth:`end_epoch` ranks.

    Parameters
    ----------
    n
        Number of samples, at least 1.
    ema_decay
        In ``[0, 1)``: the averages move by ``ema = ema_decay * ema + (1 - ema_decay) * new``.
    memory_limit
        Bytes that columns may take in memory, 4 GiB by default. 0 puts every column into a file.
    folder
        Where the files go; the system's folder for temporary files by default, which on some systems is memory
        itself. They have no names, and are gone when the ledger or the process is. After a fork the child may not
        write to a column in a file, which it would share with its parent.

    Raises
    ------
    LedgerError
        ``n``, ``ema_decay`` or ``memory_limit`` is out of bounds.

    Examples
    --------
    >>> import numpy as np
    >>> ledger = LossLedger(4)
    >>> ledger.observe(np.array([2, 0, 3]), np.array([0.1, 0.7, 0.9], dtype=np.float32))
    >>> ledger.end_epoch()
    Coverage(observed=3, nan=0, inf=0, n=4)
    >>> ledger.bottom(k=2)
    array([2, 0])
    """

    def __init__(
        self,
        n: int,
        *,
        ema_decay: float = 0.9,
        memory_limit: int = MEMORY_LIMIT,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._native = _native.Ledger(n, ema_decay=ema_decay, memory_limit=memory_limit, folder=folder)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return self._native.n_samples

    @property
    def n_columns(self) -> int:
        """Number of closed epochs."""
        return self._native.n_columns

    @property
    def n_mapped(self) -> int:
        """Number of columns that lie in files, the open one among them."""
        return self._native.n_mapped

    def observe(self, positions: Array, losses: Array) -> None:
        """Record the losses of a batch. The last write wins, inside a batch and between batches of an epoch.

        Parameters
        ----------
        positions
            ``[B]`` integers. Read in place when contiguous int64, copied otherwise.
        losses
            ``[B]`` floats. Read in place when contiguous float32, rounded to float32 otherwise. Never part of
            a graph afterwards. NaN and infinities are recorded as they are.

        Raises
        ------
        LedgerError
            A position outside ``0..n-1``, shapes that differ, dtypes that are not integer and floating, a
            tensor that is not in CPU memory; no room for a column, in memory or in the folder. Nothing is
            recorded then.
        """
        self._native.observe(
            _borrow("positions", positions, np.integer, _INT64),
            _borrow("losses", losses, np.floating, _FLOAT32),
        )

    def end_epoch(self) -> Coverage:
        """Close the open column and move the averages of the samples it observed.

        Raises
        ------
        LedgerError
            No sample was observed since the last epoch was closed.
        """
        return Coverage(**self._native.end_epoch())

    def column(self, index: int) -> npt.NDArray[np.float32]:
        """Losses of a closed epoch, ``[N]``; NaN where missing or where the loss itself was NaN.

        Raises
        ------
        LedgerError
            There is no such epoch.
        """
        return self._native.column(index)[0]

    def observed(self, index: int) -> npt.NDArray[np.bool_]:
        """Which samples a closed epoch observed, ``[N]``.

        Raises
        ------
        LedgerError
            There is no such epoch.
        """
        return self._native.column(index)[1]

    def scores(self, by: Reducer = "last", *, threshold: float | None = None) -> npt.NDArray[np.float32]:
        """One score per sample, ``[N]``: **lower is more suspicious**, NaN for a sample never observed.

        A NaN loss makes the score NaN, save that ``mean_rank`` and ``rank_ema`` rank it last and
        ``first_below`` does not count it. Infinite losses follow IEEE arithmetic.

        Parameters
        ----------
        by
            Over the epochs that observed the sample: ``last`` loss, ``ema``, ``mean``, ``mean_rank`` (average
            rank in the epoch, scaled to ``(0, 1)``), ``rank_ema``, ``auc_loss`` (area under the curve over
            its width), ``first_below`` (first epoch below ``threshold``), ``drop`` (last minus first),
            ``seep`` (minus the mean of ``1 / (1 - exp(-loss))``).
        threshold
            In nats, for ``first_below`` only.

        Raises
        ------
        LedgerError
            No epoch is closed, ``by`` is no reducer, or the threshold is missing or superfluous.
        """
        return self._native.scores(by, threshold=threshold)

    def bottom(
        self,
        ratio: float | None = None,
        *,
        k: int | None = None,
        by: Reducer = "last",
        threshold: float | None = None,
        labels: Array | None = None,
    ) -> npt.NDArray[np.int64]:
        """Positions of the most suspicious samples, lowest score first; ties go to the lower position.

        Parameters
        ----------
        ratio
            Share of the samples, in ``(0, 1]``: ``max(1, floor(ratio * N))`` of them.
        k
            Their number, instead of ``ratio``.
        by, threshold
            As for :meth:`scores`.
        labels
            ``[N]`` classes, from 0, gaps allowed. With them the share is taken from every class, and the
            classes follow each other in ascending order.

        Raises
        ------
        LedgerError
            Not exactly one of ``ratio`` and ``k``, or out of bounds; ``labels`` with ``k``; fewer samples
            with a score (observed, not NaN) than wanted, in all or in a class; and whatever :meth:`scores`
            raises.
        """
        count = self._count(ratio, k)
        scores = self.scores(by, threshold=threshold)
        if labels is None:
            return _native.bottom_k(scores, count, nan="drop")
        if ratio is None:
            raise LedgerError("labels need a ratio, a share of every class; k counts over all of them")
        classes = _borrow("labels", labels, np.integer, _INT64)
        if classes.min(initial=0) < 0:
            raise LedgerError(f"labels must be classes from 0, got {classes.min()}")
        # dense numbers: one stray huge label should not cost a bound for every class below it
        present, dense = np.unique(classes, return_inverse=True)
        return _native.bottom_k_per_class(scores, dense, ratio, len(present), nan="drop")[0]

    def agreement(self, k: int) -> npt.NDArray[np.float64]:
        """Jaccard overlap of the ``k`` lowest losses of consecutive epochs, ``[n_columns - 1]``.

        Near 1 the ranking has settled; near ``k / (2 N - k)`` it is no better than chance.

        Raises
        ------
        LedgerError
            Fewer than two epochs are closed, or one of them has fewer than ``k`` losses that are not NaN.
        """
        if self.n_columns < 2:
            raise LedgerError(
                f"agreement compares consecutive epochs, {self.n_columns} are closed, 2 are needed"
            )
        lowest = [_native.bottom_k(self.column(i), k, nan="drop") for i in range(self.n_columns)]
        return np.array([_native.jaccard(a, b) for a, b in pairwise(lowest)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, the open epoch too, to a safetensors file with a checksum.

        A file that is there is replaced in one step, once all of it is on the disk: whoever reads meets the old
        ledger or the new one. Columns are copied one at a time.

        Raises
        ------
        LedgerError
            The file cannot be written; an old one is then as it was.
        """
        ledger_file.write(self._native, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        memory_limit: int = MEMORY_LIMIT,
        folder: str | os.PathLike[str] | None = None,
    ) -> LossLedger:
        """The ledger that :meth:`save` wrote: it goes on as the other would have, to the last bit.

        ``memory_limit`` and ``folder`` are as for the ledger itself: the file is read, not kept open.

        Raises
        ------
        LedgerError
            The file cannot be read, is no ledger, or is not as it was written.
        """
        ledger = cls.__new__(cls)
        ledger._native = ledger_file.read(path, memory_limit=memory_limit, folder=folder)
        return ledger

    def _count(self, ratio: float | None, k: int | None) -> int:
        if ratio is None and k is not None and k >= 1:
            return k
        # an int is refused: 1 would mean every sample where one was meant
        if k is None and isinstance(ratio, float) and 0 < ratio <= 1:
            return max(1, math.floor(ratio * self.n_samples))
        raise LedgerError(
            f"give either ratio, a float in (0, 1], or k, at least 1; got ratio={ratio!r} and k={k!r}"
        )


def _borrow(
    name: str, values: Array, kind: type[np.integer[Any] | np.floating[Any]], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """The memory of ``values`` as a contiguous array of ``dtype``; no copy when it is one."""
    # first: the other questions take longer than writing a small batch does
    if type(values) is np.ndarray and values.dtype == dtype and values.flags.c_contiguous:
        return values
    if isinstance(values, torch.Tensor):
        if values.device.type != "cpu":
            raise LedgerError(
                f"{name} must be in CPU memory, got a tensor on {values.device}; use {name}.cpu()"
            )
        values = values.detach()
        # numpy has no bfloat16
        array = (values.float() if values.is_floating_point() else values).numpy()
    elif isinstance(values, np.ndarray):
        array = values
    else:
        raise LedgerError(f"{name} must be a numpy array or a torch tensor, got {type(values).__name__}")
    if not np.issubdtype(array.dtype, kind):
        raise LedgerError(f"{name} must hold {kind.__name__} values, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=dtype)
