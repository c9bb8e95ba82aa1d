"""Operations with one contract each: a file states shapes, dtypes and the formula, and holds the plain torch reference.

Fast paths (Rust for CPU tensors, Triton for NVIDIA GPUs) live beside the reference and answer to it; ``backend=``
chooses, ``"auto"`` by default. Importing this package loads neither.

Shape letters, the same in every docstring: ``N`` samples, ``B`` batch, ``T`` tokens, ``D`` model width, ``V``
vocabulary, ``C`` classes, ``I``/``O`` in and out features, ``R`` rank, ``S`` scales. Batch first, feature last;
per-sample results are ``[B]`` float32.
"""

from __future__ import annotations

from asepsis.kernels._dispatch import Backend
from asepsis.kernels.bottom_k import bottom_k
from asepsis.kernels.sample_loss import sample_loss

__all__ = ["Backend", "bottom_k", "sample_loss"]
