"""Compare a model with its base, from files alone: by token and by tensor. Nothing is loaded or run."""

from __future__ import annotations

from asepsis.core.drift.result import ModelScan, TensorDrift, TokenDrift
from asepsis.core.drift.scan import scan_model

__all__ = ["ModelScan", "TensorDrift", "TokenDrift", "scan_model"]
