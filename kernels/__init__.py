"""Operations with one contract each: a file states shapes, dtypes and formula, and holds the torch reference.

Fast paths (Rust for CPU tensors, Triton for NVIDIA GPUs) live beside the reference and answer to it;
``backend=`` chooses, ``"auto"`` by default. Importing this package loads neither.

Shape letters, the same in every docstring: ``N`` samples, ``B`` batch, ``T`` tokens, ``D`` model width, ``V``
vocabulary, ``C`` classes, ``I``/``O`` in and out features, ``R`` rank, ``S`` scales. Batch first, feature
last; per-sample results are ``[B]`` float32.
"""

from __future__ import annotations

from asepsis.kernels._calibration import use as use_calibration
from asepsis.kernels._dispatch import Backend
from asepsis.kernels._matrices import Stored
from asepsis.kernels._moments import RowStats
from asepsis.kernels._segments import Segments
from asepsis.kernels.bottom_k import bottom_k
from asepsis.kernels.column_medians import ColumnMedians, column_medians
from asepsis.kernels.gradient_alignment import (
    AlignmentStats,
    Granularity,
    Rule,
    gradient_alignment,
)
from asepsis.kernels.grouped_lora import GroupedLayer, grouped_lora
from asepsis.kernels.mixing import mix
from asepsis.kernels.multiscale_lora import SetAside, multiscale_lora
from asepsis.kernels.row_stats import row_stats
from asepsis.kernels.sample_loss import linear_sample_loss, sample_loss

__all__ = [
    "AlignmentStats",
    "Backend",
    "ColumnMedians",
    "Granularity",
    "GroupedLayer",
    "RowStats",
    "Rule",
    "Segments",
    "SetAside",
    "Stored",
    "bottom_k",
    "column_medians",
    "gradient_alignment",
    "grouped_lora",
    "linear_sample_loss",
    "mix",
    "multiscale_lora",
    "row_stats",
    "sample_loss",
    "use_calibration",
]
