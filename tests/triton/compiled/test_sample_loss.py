"""What only the compiled code can tell about the losses."""

from __future__ import annotations

import pytest

from asepsis.kernels._triton.sample_loss import shipped


@pytest.mark.parametrize("capability", [80, 90])
def test_a_loss_does_not_pass_through_the_approximate_logarithm(capability, compile_for):
    # MUFU.LG2 is off by 2e-7 near 1, which is a quarter of a loss of 8e-7; the interpreter's logarithm is exact
    (entry,) = (entry for entry in shipped() if entry.kernel.__name__ == "_combine")
    code = compile_for(entry, capability)
    assert code.has("MUFU.EX2")
    assert not code.has("MUFU.LG2")
