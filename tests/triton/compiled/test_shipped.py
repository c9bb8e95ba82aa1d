"""Every kernel as shipped compiles to code that is fit for its GPU: nothing spills, everything fits."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import triton
import triton.language as tl

import asepsis.kernels._triton as twins
from asepsis.kernels._triton._shipped import Shipped

MATRIX = {80: "HMMA", 90: "HGMMA"}
SHARED = {80: 166_912, 90: 232_448}  # bytes a block may ask for; triton.compile does not look
MODULES = sorted(m.name for m in pkgutil.iter_modules(twins.__path__) if not m.name.startswith("_"))


SHIPPED = [
    pytest.param(entry, capability, id=f"{entry.kernel.__name__.lstrip('_')}-{entry.label}-sm_{capability}")
    for name in MODULES
    for entry in importlib.import_module(f"{twins.__name__}.{name}").shipped()
    for capability in entry.capabilities
]


@pytest.mark.parametrize(("entry", "capability"), SHIPPED)
def test_a_shipped_kernel_neither_spills_nor_outgrows_its_gpu(entry, capability, compile_for):
    code = compile_for(entry, capability)
    assert code.stack == 0
    assert not code.has("LDL")
    assert not code.has("STL")
    assert code.shared <= SHARED[capability]
    assert not [name for name in ("ATOM", "ATOMG", "ATOMS", "RED") if code.has(name)]
    assert code.has(MATRIX[capability]) or not entry.tensor_cores
    assert "LDG.E.128" in code.sass or "LDGSTS.E.BYPASS.128" in code.sass or not entry.wide_loads


@triton.jit
def spilling(values, steps, N: tl.constexpr):
    index = tl.arange(0, N)
    kept = tl.load(values + index)  # N / 32 registers of one warp's threads, all wanted to the end
    for step in range(steps):
        kept += tl.load(values + step * N + index) * kept
    tl.store(values + index, kept)


@triton.jit
def adding(values):
    tl.atomic_add(values, 1.0)


def test_a_kernel_that_spills_is_seen_to_spill(compile_for):
    types = {"values": "*fp32", "steps": "i32"}
    entry = Shipped(label="planted", kernel=spilling, types=types, constants={"N": 8192}, warps=1)
    code = compile_for(entry, 80)
    assert code.stack > 0
    assert code.has("LDL")


@pytest.mark.parametrize("capability", [80, 90])
def test_an_atomic_operation_is_seen(capability, compile_for):
    code = compile_for(Shipped(label="planted", kernel=adding, types={"values": "*fp32"}), capability)
    assert any(code.has(name) for name in ("ATOM", "ATOMG", "RED"))


def test_an_entry_with_an_argument_the_kernel_has_not_is_refused(compile_for):
    entry = Shipped(label="planted", kernel=adding, types={"values": "*fp32", "count": "i32"})
    with pytest.raises(AssertionError, match="count"):
        compile_for(entry, 80)
