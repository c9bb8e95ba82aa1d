"""Makes the tree importable where it was not installed: on a GPU machine without Rust or network a wheel lies beside it."""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NATIVE = re.compile(r"asepsis/(_native[^/]*\.(?:so|pyd))$")


class TreeError(RuntimeError):
    """asepsis cannot be imported here; the message says what is missing."""


def make_importable(root: Path = ROOT) -> Path:
    """Put the tree's own package first on the path and return it: numbers are filed under the tree's commit.

    The Rust core is taken from an abi3 wheel in the tree, in ``dist/`` or beside the tree, where the tree has none; it is
    unpacked to where a build would put it.
    """
    package = root / "python" / "asepsis"
    if not [*package.glob("_native*.so"), *package.glob("_native*.pyd")]:
        unpack_native(root, package)
    sys.path.insert(0, str(package.parent))
    importlib.invalidate_caches()
    return package


def unpack_native(root: Path, package: Path) -> Path:
    """Unpack the Rust core of the newest abi3 wheel near ``root`` and return where it lies now."""
    folders = [root, root / "dist", root.parent, root.parent / "dist"]
    wheels = [wheel for folder in folders for wheel in folder.glob("asepsis-*-abi3-*.whl")]
    if not wheels:
        raise TreeError(
            f"the tree has no Rust core and no asepsis-*-abi3-*.whl lies in {', '.join(map(str, folders))}; "
            "run `make wheel` where there is a Rust toolchain and copy dist/*.whl beside the tree"
        )
    wheel = max(wheels, key=lambda path: path.stat().st_mtime)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            found = _NATIVE.search(member)
            if found:
                place = package / found.group(1)
                place.write_bytes(archive.read(member))
                return place
    raise TreeError(f"{wheel} holds no asepsis/_native library; it was built without the Rust core")
