"""Say what a machine lacks to build asepsis, before the first download. Runs on Python 3.6 too."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON = (3, 10)
RUST = (1, 89)


def problems():
    """Yield one line for each thing that is missing, with the way out."""
    if sys.version_info < PYTHON:
        found = f"{sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}"
        yield f"Python {PYTHON[0]}.{PYTHON[1]} or newer is wanted, {found}: make PYTHON=/path/to/python3"
    if any(importlib.util.find_spec(name) is None for name in ("ensurepip", "venv")):
        yield "this Python cannot make a virtual environment: on Debian, apt-get install python3-venv"
    cargo = shutil.which("cargo")
    if cargo is None:
        yield "no Rust toolchain (cargo) on PATH: install it from https://rustup.rs"
    else:
        said = subprocess.check_output([cargo, "--version"]).decode()
        found = re.search(r"cargo (\d+)\.(\d+)", said)
        if found is None or (int(found.group(1)), int(found.group(2))) < RUST:
            yield f"Rust {RUST[0]}.{RUST[1]} or newer is wanted, got {said.strip()!r}: rustup update"
    if shutil.which("cc") is None:
        yield "no C linker (cc) on PATH: on Debian, apt-get install gcc libc6-dev"
    if not Path("python/asepsis/kernels").is_dir():
        yield "python/asepsis/kernels is not a link: git config core.symlinks true, then check out again"


if __name__ == "__main__":
    missing = list(problems())
    for line in missing:
        sys.stderr.write(f"asepsis: {line}\n")
    sys.exit(1 if missing else 0)
