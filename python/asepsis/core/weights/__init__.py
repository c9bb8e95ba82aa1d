"""Models as files: what is where, which row is which token, how often tokens are expected. No weights are loaded."""

from __future__ import annotations

from asepsis.core.weights.files import Checkpoint, aligned_names
from asepsis.core.weights.find import find_checkpoint
from asepsis.core.weights.frequencies import Frequencies
from asepsis.core.weights.headers import StoredTensor
from asepsis.core.weights.vocabulary import Vocabulary, row_map
from asepsis.core.weights.write import SafetensorsWriter, copy_checkpoint_except

__all__ = [
    "Checkpoint",
    "Frequencies",
    "SafetensorsWriter",
    "StoredTensor",
    "Vocabulary",
    "aligned_names",
    "copy_checkpoint_except",
    "find_checkpoint",
    "row_map",
]
