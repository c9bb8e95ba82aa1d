"""What :func:`asepsis.kernels.row_stats` returns: sums taken in one pass, and what follows from them without another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asepsis.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RowStats:
    """Sums over each of ``N`` compared rows of ``D`` columns, with ``delta = tuned - reference`` in float32.

    A row with a delta that is not finite has NaN in every float, and what is derived from it is NaN too; no other row
    and no column sum hears of it. Nothing is subtracted that nearly cancels except where a method says so.

    Attributes
    ----------
    width
        ``D``.
    delta_squared, delta_dot, reference_squared, delta_abs
        ``[N]`` float64: sums of delta², delta·reference, reference², \\|delta\\|.
    delta_max
        ``[N]`` float32: largest \\|delta\\|, exact.
    delta_argmax
        ``[N]`` int64: first column that has it; of a row that is not finite, first column that is not.
    zeros, non_finite
        ``[N]`` int64: deltas that are zero, that are NaN or infinite.
    column_delta, column_delta_squared
        ``[D]`` float64 sums over the rows that are finite, None unless ``columns=True``.
    """

    width: int
    delta_squared: Floats
    delta_dot: Floats
    reference_squared: Floats
    delta_abs: Floats
    delta_max: npt.NDArray[np.float32]
    delta_argmax: npt.NDArray[np.int64]
    zeros: npt.NDArray[np.int64]
    non_finite: npt.NDArray[np.int64]
    column_delta: Floats | None = None
    column_delta_squared: Floats | None = None

    def __len__(self) -> int:
        return len(self.delta_squared)

    @property
    def moved(self) -> npt.NDArray[np.bool_]:
        """``[N]``: whether any delta is not zero. Where no row moved there is no evidence to rank."""
        return self.zeros < self.width

    @property
    def l2(self) -> Floats:
        """``[N]``: norm of delta."""
        return _root(self.delta_squared)

    @property
    def relative_l2(self) -> Floats:
        """``[N]``: norm of delta over that of the reference, infinite for a row that left zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(self.delta_squared / self.reference_squared)
        return np.where(self.delta_squared == 0, 0.0, ratio)

    @property
    def tuned_squared(self) -> Floats:
        """``[N]``: sum of tuned², from what it adds to the reference."""
        total = self.reference_squared + 2 * self.delta_dot + self.delta_squared
        return np.where(total < 0, 0.0, total)

    @property
    def cosine(self) -> Floats:
        """``[N]``: cosine of reference and tuned, NaN where one of them is zero."""
        dot = self.reference_squared + self.delta_dot
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine: Floats = np.clip(dot / np.sqrt(self.reference_squared * self.tuned_squared), -1.0, 1.0)
        return cosine

    @property
    def cosine_distance(self) -> Floats:
        """``[N]``: ``1 - cosine``, by way of the sine, which keeps its digits where the angle is small."""
        cosine = self.cosine
        with np.errstate(divide="ignore", invalid="ignore"):
            small = self.perpendicular**2 / (self.tuned_squared * (1 + cosine))
        return np.where(cosine > 0, small, 1 - cosine)

    @property
    def perpendicular(self) -> Floats:
        """``[N]``: norm of the part of delta at right angles to the reference.

        No rescaling of a row shows in it, so weight decay does not; an edit that keeps the norm does. It is a
        difference: where delta is parallel to the reference, up to about 1e-3 of ``l2`` is left of rounding.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            parallel = self.delta_dot**2 / self.reference_squared
        parallel = np.where(self.reference_squared == 0, 0.0, parallel)
        return _root(self.delta_squared - parallel)

    @property
    def spread(self) -> Floats:
        """``[N]``: ``delta_abs / (sqrt(D) l2)``: 1 for equal sizes in all columns, 0.8 for Gaussian ones."""
        with np.errstate(divide="ignore", invalid="ignore"):
            spread: Floats = self.delta_abs / (np.sqrt(self.width) * self.l2)
        return spread

    @property
    def column_mean(self) -> Floats:
        """``[D]``: mean delta of a column over the rows that are finite."""
        return self._columns(self.column_delta)

    @property
    def column_std(self) -> Floats:
        """``[D]``: standard deviation of the deltas of a column, a difference of squares."""
        return _root(self._columns(self.column_delta_squared) - self.column_mean**2)

    def decay(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> float:
        """Factor by which weight decay shrank rows that had no other reason to move, the median over them.

        Parameters
        ----------
        rows
            Rows that were not trained on: indices, or a mask ``[N]``.

        Raises
        ------
        DataError
            None of the rows is finite and not zero in the reference.
        """
        dot, squared = self.delta_dot[rows], self.reference_squared[rows]
        usable = squared > 0
        if not usable.any():
            raise DataError(
                f"decay is estimated from rows that are finite and not zero in the reference, none of {len(dot)} is; "
                "name more rows that were not trained on, or use perpendicular, which needs no estimate"
            )
        return 1.0 + float(np.median(dot[usable] / squared[usable]))

    def decay_free(self, gamma: float) -> Floats:
        """``[N]``: norm of ``tuned - gamma * reference``; as with ``perpendicular``, about 1e-3 of ``l2`` is rounding."""
        lost = 1.0 - gamma
        squared = self.delta_squared + 2 * lost * self.delta_dot + lost**2 * self.reference_squared
        return _root(squared)

    def _columns(self, sums: Floats | None) -> Floats:
        if sums is None:
            raise DataError("columns were not summed up; call row_stats(..., columns=True)")
        finite = int((self.non_finite == 0).sum())
        return sums / finite if finite else np.full(self.width, np.nan)


def _root(squared: Floats) -> Floats:
    """The root of a sum of squares that rounding may have taken below zero; NaN stays."""
    root: Floats = np.sqrt(np.maximum(squared, 0.0))
    return root
