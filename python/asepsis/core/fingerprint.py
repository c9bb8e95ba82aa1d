"""Which weights are these? A short digest, for what was made for one model and is put before another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLES = 1024  # values read of each tensor


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """Return a digest of names, shapes, types and up to 1,024 evenly spaced values of every parameter, 32 hex digits.

    It tells models apart; it does not prove that two are equal in every value.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}|{tuple(parameter.shape)}|{parameter.dtype}|".encode())
        flat = parameter.detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLES)
        digest.update(flat[::step].to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
