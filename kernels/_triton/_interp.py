"""What has to be said differently for Triton's interpreter, and compiles to nothing on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl

#: Read once, as ``triton.jit`` reads it when it decorates: a process interprets every kernel or compiles every kernel.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b``, summed in float32; ``PRECISION`` is ``"ieee"`` or ``"tf32"`` and counts for float32 alone.

    The interpreter multiplies the bit patterns of bfloat16. As float32 they are the same numbers and give the products
    of the GPU. Its ``tl.sum`` has the same fault: cast to float32 before every reduction.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)
