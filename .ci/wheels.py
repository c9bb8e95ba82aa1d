"""Build the Linux wheels that run from glibc 2.17 on, and hand out none that does not.

    python .ci/wheels.py [--out dist] [--machine x86_64] [--machine aarch64]
    python .ci/wheels.py --check FILE.whl ...

Zig (the package ``ziglang``) links against the old glibc, so no container is needed, and cross-compiles. A machine
whose Rust standard library is not installed is left out aloud; one that was asked for by ``--machine`` is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

MACHINES = ("x86_64", "aarch64")
GLIBC = (2, 17)
LARGEST = 2_000_000  # bytes
ROOT = Path(__file__).resolve().parents[1]


class Refused(Exception):
    """A wheel that must not be published, or that cannot be built here."""


def run(*command: str, **environment: str) -> str:
    """Run a module of this interpreter and return what it printed; its errors go through."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(f"{command[0]} failed with {done.returncode}\n{done.stdout}")
    return done.stdout


def can_build(machine: str) -> bool:
    """Say whether Rust's standard library for the machine is installed, with rustup or without."""
    target = f"{machine}-unknown-linux-gnu"
    said = subprocess.run(
        ["rustc", "--print", "target-libdir", "--target", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.returncode == 0 and any(Path(said.stdout.strip()).glob("libstd-*"))


def build(machine: str, out: Path) -> Path:
    """Build one wheel into a folder and return it."""
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}"
    # cargo-zigbuild, which is inside maturin, asks this interpreter for zig
    run(
        *("maturin", "build", "--release", "--locked", "--zig", "--compatibility", tag),
        *("--target", f"{machine}-unknown-linux-gnu", "--out", str(out)),
        CARGO_ZIGBUILD_PYTHON_PATH=sys.executable,
        PYO3_PYTHON=sys.executable,
    )
    (wheel,) = out.glob(f"asepsis-*{tag}_{machine}.whl")
    return wheel


def check(wheel: Path) -> str:
    """Return a line about a wheel that may be published; raise Refused for any other.

    The platform tag is auditwheel's reading of the library's symbols and of the libraries it asks for, not what the
    file's name claims.
    """
    if wheel.stat().st_size >= LARGEST:
        raise Refused(f"{wheel.name} has {wheel.stat().st_size:,} bytes, wanted under {LARGEST:,}")
    said = " ".join(run("auditwheel", "show", str(wheel)).split())
    found = re.search(r'platform tag: "manylinux_(\d+)_(\d+)_\w+"', said)
    if found is None or (int(found[1]), int(found[2])) > GLIBC:
        raise Refused(f"{wheel.name} runs on glibc {GLIBC[0]}.{GLIBC[1]} by no means: auditwheel said {said}")
    report = json.loads(run("abi3audit", "--strict", "--report", str(wheel)))
    (spec,) = report["specs"].values()
    results = [library["result"] for library in spec["wheel"]]
    if [r["is_abi3"] and r["is_abi3_baseline_compatible"] for r in results] != [True]:
        raise Refused(f"{wheel.name} is no abi3 wheel with one library: {results}")
    return f"{wheel.name}: {wheel.stat().st_size:,} bytes, glibc {found[1]}.{found[2]}, abi3 from {results[0]['baseline']}"


def main() -> int:
    """Build and check, or only check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="build for these and no others")
    parser.add_argument("--check", type=Path, nargs="+", metavar="WHEEL", help="build nothing")
    options = parser.parse_args()
    try:
        if options.check:
            for wheel in options.check:
                sys.stdout.write(check(wheel) + "\n")
            return 0
        if platform.system() != "Linux":
            raise Refused(
                f"these are wheels for Linux; on {platform.system()}: maturin build --release --locked"
            )
        for machine in options.machine or MACHINES:
            if can_build(machine):
                sys.stdout.write(check(build(machine, options.out.resolve())) + "\n")
                continue
            line = (
                f"Rust's standard library for {machine} is not installed: "
                f"rustup target add {machine}-unknown-linux-gnu"
            )
            if options.machine or machine == platform.machine():
                raise Refused(line)
            sys.stderr.write(f"asepsis: NO {machine} WHEEL WAS BUILT: {line}\n")
    except Refused as error:
        sys.stderr.write(f"asepsis: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
