"""Install a wheel in a fresh virtual environment of each Python from 3.10 to 3.13, import it, run tests against it.

    python .ci/try_wheel.py WHEEL [--python 3.12 ...] [--bare | --borrow SITE_PACKAGES]

Without an option all dependencies are installed and the tests of the native module and the kernels run. ``--bare``
installs numpy, typer and the test tools alone, and runs the tests that need no torch: minutes instead of gigabytes.
``--borrow`` takes everything but the wheel from a folder of packages of the same Python. A Python that is not on this
machine is named aloud; one that was asked for is an error. The tests are copied away from the tree, so that nothing
but the wheel can be imported as asepsis.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "pytest-timeout", "hypothesis")
FIRST = """
import pathlib, sys, asepsis, asepsis.errors, asepsis._native
homes = {pathlib.Path(m.__file__).resolve() for m in (asepsis, asepsis._native)}
outside = [str(h) for h in homes if not h.is_relative_to(pathlib.Path(sys.prefix).resolve())]
sys.exit(f"not from the wheel: {outside}" if outside else 0)
"""


def interpreter(wanted: str) -> str | None:
    """Return a Python of that version which really runs: a pyenv shim on PATH may only say that it does not."""
    if os.sep in wanted:
        return wanted
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    uv = Path.home() / ".local/share/uv"
    for path in (
        sys.executable,
        shutil.which(f"python{wanted}"),
        *sorted(pyenv.glob(f"versions/{wanted}.*/bin/python")),
        *sorted(uv.glob(f"python/cpython-{wanted}.*/bin/python")),
    ):
        if path is None:
            continue
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.strip() == wanted:
            return str(path)
    return None


def tests(folder: Path, *, bare: bool) -> list[str]:
    """Copy what runs, and return the files by their path in the folder."""
    chosen = sorted((ROOT / "tests/native").glob("test_*.py"))
    if bare:
        chosen = [file for file in chosen if "import torch" not in file.read_text(encoding="utf-8")]
    else:
        chosen += sorted((ROOT / "tests/kernels").glob("test_*.py"))
    shared = (ROOT / "tests/conftest.py", ROOT / "tests/native/conftest.py")
    for file in (*shared, *chosen):
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return [str(file.relative_to(ROOT)) for file in chosen]


def attempt(python: str, wheel: Path, *, bare: bool, borrow: Path | None) -> None:
    """Raise CalledProcessError at the first step that fails."""
    clean = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def do(*command: str | Path) -> None:
            subprocess.run([str(word) for word in command], cwd=folder, env=clean, check=True)

        do(python, "-m", "venv", folder / "venv")
        mine = folder / "venv/bin/python"
        install = (mine, "-m", "pip", "install", "--quiet", "--constraint", ROOT / ".ci/constraints.txt")
        if borrow is not None:
            do(*install, "--no-index", "--no-deps", wheel)
            (site,) = (folder / "venv/lib").glob("python*/site-packages")
            (site / "borrowed.pth").write_text(f"{borrow}\n", encoding="utf-8")
        elif bare:
            do(*install, "numpy", "typer", *TOOLS)
            do(*install, "--no-deps", wheel)
        else:
            do(*install, wheel, *TOOLS)
        do(mine, "-c", FIRST)
        do(folder / "venv/bin/asepsis", "--version")
        chosen = tests(folder, bare=bare)
        options = ("-q", "-m", "not slow", "--import-mode=importlib", "-p", "no:cacheprovider")
        do(mine, "-m", "pytest", *options, *chosen)


def main() -> int:
    """Try every Python, say what was tried, and fail where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", action="append", help="versions such as 3.12, or paths")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--borrow", type=Path)
    options = parser.parse_args()
    outcome: dict[str, str] = {}
    for wanted in options.python or PYTHONS:
        found = interpreter(wanted)
        if found is None:
            outcome[wanted] = (
                "FAILED: not on this machine" if options.python else "NOT TRIED: not on this machine"
            )
            continue
        try:
            attempt(found, options.wheel.resolve(), bare=options.bare, borrow=options.borrow)
            outcome[wanted] = "passed" + (", without torch" if options.bare else "")
        except subprocess.CalledProcessError as error:
            outcome[wanted] = f"FAILED: {' '.join(map(str, error.cmd))[:200]}"
    for wanted, line in outcome.items():
        sys.stdout.write(f"Python {wanted}: {line}\n")
    tried = [line for line in outcome.values() if line.startswith("passed")]
    return 0 if tried and not any(line.startswith("FAILED") for line in outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
