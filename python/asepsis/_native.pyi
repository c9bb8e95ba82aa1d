"""The Rust core. Arrays are borrowed, so each must be contiguous, 1-D and of exactly the dtype written here.

``row_stats`` and ``column_medians`` take matrices, ``mix`` writes: their own docstrings say how. Every failure is an
:class:`asepsis.errors.LedgerError`, of these and ``mix`` a :class:`asepsis.errors.DataError`. The GIL is
released while work runs.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

_NanPolicy: TypeAlias = Literal["last", "error", "drop"]
_Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]

__version__: str

def argsort(values: npt.NDArray[np.float32], *, nan: _NanPolicy = "last") -> npt.NDArray[np.int64]: ...
def bottom_k(
    values: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    k: int,
    *,
    dtype: _Dtype = "float32",
    nan: _NanPolicy = "last",
    threads: int = 1,
) -> npt.NDArray[np.int64]: ...
def bottom_k_per_class(
    values: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    ratio: float,
    n_classes: int,
    *,
    nan: _NanPolicy = "last",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
def column_medians(
    reference: npt.NDArray[np.uint8],
    tuned: npt.NDArray[np.uint8],
    *,
    reference_dtype: _Dtype,
    tuned_dtype: _Dtype,
    pairs: npt.NDArray[np.int64] | None = None,
    round_to: _Dtype | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]: ...
def jaccard(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float: ...
def mix(
    reference: npt.NDArray[np.uint8],
    tuned: npt.NDArray[np.uint8],
    out: npt.NDArray[np.uint8],
    *,
    item_size: int,
    seed: int,
    key: int,
    kept_of_65536: int,
    start: int = 0,
    threads: int = 1,
) -> int: ...
def ranks(
    values: npt.NDArray[np.float32],
    *,
    method: Literal["ordinal", "average", "min", "histogram"] = "ordinal",
    nan: _NanPolicy = "last",
) -> npt.NDArray[np.float64]: ...
def row_stats(
    reference: npt.NDArray[np.uint8],
    tuned: npt.NDArray[np.uint8],
    *,
    reference_dtype: _Dtype,
    tuned_dtype: _Dtype,
    pairs: npt.NDArray[np.int64] | None = None,
    columns: bool = False,
    round_to: _Dtype | None = None,
    threads: int = 1,
) -> dict[str, npt.NDArray[Any]]: ...

@final
class Ledger:
    def __new__(
        cls,
        n: int,
        *,
        ema_decay: float = 0.9,
        memory_limit: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> Ledger: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def n_columns(self) -> int: ...
    @property
    def n_mapped(self) -> int: ...
    def observe(self, positions: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]) -> None: ...
    def end_epoch(self) -> dict[Literal["observed", "nan", "inf", "n"], int]: ...
    def state(self) -> tuple[float, dict[str, npt.NDArray[Any]]]: ...
    def epoch(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint64]]: ...
    @staticmethod
    def from_state(
        n: int,
        ema_decay: float,
        arrays: Mapping[str, npt.NDArray[Any]],
        *,
        memory_limit: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> Ledger: ...
    def column(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]: ...
    def scores(
        self,
        by: Literal[
            "last", "ema", "mean", "mean_rank", "rank_ema", "auc_loss", "first_below", "drop", "seep"
        ],
        *,
        threshold: float | None = None,
    ) -> npt.NDArray[np.float32]: ...
