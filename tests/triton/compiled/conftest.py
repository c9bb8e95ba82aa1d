"""Compile for a GPU that is not there, and read what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asepsis.kernels._triton._shipped import Shipped


@dataclass(frozen=True)
class Code:
    registers: int
    stack: int
    shared: int
    sass: str

    def has(self, instruction: str) -> bool:
        """Whether an instruction of this name is in the code, with any suffix."""
        return re.search(rf"\b{re.escape(instruction)}\b", self.sass) is not None


def _compile(entry: Shipped, capability: int) -> Code:
    names = entry.kernel.arg_names
    at = {name: i for i, name in enumerate(names)}
    unknown = {*entry.types, *entry.constants, *entry.aligned} - set(at)
    assert not unknown, f"{entry.label} names arguments the kernel has not: {sorted(unknown)}"
    source = ASTSource(
        fn=entry.kernel,
        signature={name: entry.types.get(name, "constexpr") for name in names},
        constexprs={(at[name],): value for name, value in entry.constants.items()},
        attrs={(at[name],): [["tt.divisibility", 16]] for name in entry.aligned},
    )
    built = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": entry.warps, "num_stages": entry.stages},
    )
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Code(int(found[1]), int(found[2]), built.metadata.shared, sass)


@pytest.fixture
def compile_for(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Callable[[Shipped, int], Code]]:
    """``compile_for(entry, capability)`` gives the code; the summary shows what it uses."""
    assert request.config.cache is not None
    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(request.config.cache.mkdir("triton"))

    def compile_one(entry: Shipped, capability: int) -> Code:
        code = _compile(entry, capability)
        name = f"{entry.kernel.__name__.lstrip('_')} {entry.label}"
        line = (
            f"{capability:>2} {code.registers:>9} {code.shared:>7} {code.stack:>6} {entry.warps:>5}  {name}"
        )
        record_property("compiled", line)
        return code

    yield compile_one
    triton.knobs.cache.dir = before
