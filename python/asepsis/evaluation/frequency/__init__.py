"""Which part of the labels a model learns first: the low- or the high-frequency one, of clean and of poisoned rows.

The evidence of the MuScleLoRA paper (Wu et al., ACL 2024): a backdoor is a simple mapping and converges at low
frequency, before the task does. Averaging a mapping over neighboring rows leaves its low-frequency part; what the
average takes away is the high-frequency part. Both are compared with those of the labels while a model trains.

Deviations from the authors' code, which cannot be run as released:

- Clean and poisoned rows share one kernel and are read out apart. Poisoned rows all carry the target label, so on
  their own the high-frequency part of their labels is exactly zero and its relative error divides by it.
- An input is the mean of its token embeddings without padding and dropout, taken once when the probe is made. Theirs
  are flattened and padded to the batch, in train mode, so that the filter depends on chance and on batch order.
- Filter widths follow the data, see :func:`.filter.default_sigmas`; ``PAPER_SIGMAS`` are theirs, meant for their longer
  vectors. Under means of token embeddings they average over nearly all rows alike.

When not to trust it: a shared trigger moves poisoned rows closer together, and they share a label, so part of their
lead is there by construction. A model that answers the target label everywhere is also right on every poisoned row;
compare with the clean rows of the same label (``clean_same_label``) before calling the backdoor the faster one.
"""

from __future__ import annotations

from asepsis.evaluation.frequency.filter import (
    PAPER_SIGMAS,
    Bands,
    Kernel,
    compare,
    default_sigmas,
    low_pass,
    neighbors,
)
from asepsis.evaluation.frequency.inputs import pooled_embeddings
from asepsis.evaluation.frequency.plot import frequency_svg
from asepsis.evaluation.frequency.probe import FrequencyProbe, Record
from asepsis.evaluation.frequency.training import balanced_rows, frequency_of_training

__all__ = [
    "PAPER_SIGMAS",
    "Bands",
    "FrequencyProbe",
    "Kernel",
    "Record",
    "balanced_rows",
    "compare",
    "default_sigmas",
    "frequency_of_training",
    "frequency_svg",
    "low_pass",
    "neighbors",
    "pooled_embeddings",
]
