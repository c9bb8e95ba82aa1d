from __future__ import annotations

import torch

from asepsis.core.fingerprint import weights_fingerprint
from asepsis.testing import tiny_classifier


def test_the_same_weights_have_the_same_fingerprint_and_others_another() -> None:
    model, _ = tiny_classifier(0)
    again, _ = tiny_classifier(0)
    other, _ = tiny_classifier(1)
    assert weights_fingerprint(model) == weights_fingerprint(again) != weights_fingerprint(other)
    with torch.no_grad():
        again.classifier.bias.add_(1e-3)
    assert weights_fingerprint(model) != weights_fingerprint(again)


def test_mode_and_flags_are_no_weights() -> None:
    model, _ = tiny_classifier(0)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model.eval().requires_grad_(False)) == before
    assert weights_fingerprint(model.to(torch.bfloat16)) != before
