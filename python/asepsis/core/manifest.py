"""``asepsis.json``: what a folder was made from and how, what is in it, and whether that still holds.

Hashes tell that files were swapped or damaged since they were written. They do not tell who wrote them: whoever can
change the folder can write its manifest anew. Sign the manifest where that matters.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from asepsis.core.documents import read_json
from asepsis.core.evidence import EVIDENCE
from asepsis.core.weights.find import find_checkpoint
from asepsis.core.weights.folders import check_link
from asepsis.data import Data
from asepsis.data.packaged import DEMO_PREFIX, packaged_model
from asepsis.errors import CheckpointError, DataError

MANIFEST = "asepsis.json"
ROWS = "asepsis_rows.jsonl"
#: What a run says about itself; no part of the model.
RECORDS = frozenset({MANIFEST, ROWS, EVIDENCE})
FORMAT = 1

_CHUNK = 1 << 22
# what makes a model: weights, configuration, tokenizer
_PARTS = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model"})

Status = Literal["same", "changed", "missing", "added", "unknown"]


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes
    ----------
    what : str
        A file's name, ``"data"`` or ``"base"``.
    status : str
        ``"unknown"`` where the manifest does not say what it was.
    detail : str
        What was found beside what was expected, empty where they are the same.
    """

    what: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes
    ----------
    folder : str
    checks : tuple of Check
        Files by name, then data and base where they were given.
    manifest : dict
        As it was read.
    """

    folder: str
    checks: tuple[Check, ...]
    manifest: dict[str, Any]

    @property
    def verdict(self) -> Literal["intact", "altered", "inconclusive"]:
        """Altered where anything differs; inconclusive where nothing does but something could not be compared."""
        found = {check.status for check in self.checks}
        if found & {"changed", "missing", "added"}:
            return "altered"
        return "inconclusive" if "unknown" in found else "intact"

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, without the manifest."""
        return {
            "folder": self.folder,
            "verdict": self.verdict,
            "checks": [asdict(check) for check in self.checks],
        }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``asepsis.json`` last, with size and SHA-256 of every other file of the folder, subfolders included."""
    files = {name: _described(folder / name) for name in _names(folder)}
    text = json.dumps(
        {"format": FORMAT, **manifest, "files": files}, indent=2, sort_keys=True, allow_nan=False
    )
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises
    ------
    CheckpointError
        There is none, or it is no manifest that this version can read.
    """
    path = Path(folder) / MANIFEST
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was not written by asepsis") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(
            f"{path}: format {got!r} is not {FORMAT}; read it with the version that wrote it"
        )
    return found


def check_writable(
    folder: Path, *, manifest: str = MANIFEST, otherwise: str = "was not written by asepsis"
) -> None:
    """Raise ``CheckpointError`` where a folder holds something that has no such manifest: it would be replaced."""
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / manifest).exists():
        raise CheckpointError(f"{folder} exists and {otherwise}; name another folder")


def identity(model: str | Path) -> dict[str, str | None]:
    """Return what a model is known by later: ``name``, hub ``revision`` and ``sha256``, each None where it has none.

    A hub id has the revision in the local cache. A folder has the SHA-256 of its weights, configuration and tokenizer,
    a packaged model that of its files; reading a folder costs about a second a gigabyte.
    """
    name = str(model)
    if name.startswith(DEMO_PREFIX):
        kind = name.removeprefix(DEMO_PREFIX).partition(":")[0]
        return {
            "name": name,
            "revision": None,
            "sha256": _digest(dict(packaged_model(DEMO_PREFIX + kind).files)),
        }
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        names = [p for p in _names(folder) if Path(p).suffix in _PARTS and p not in RECORDS]
        for part in names:
            check_link(folder, folder / part)  # to a device, say, which has no end
        parts = {part: _sha256(folder / part) for part in names if (folder / part).is_file()}
        return {"name": name, "revision": None, "sha256": _digest(parts)}
    with find_checkpoint(name) as snapshot:
        return {"name": name, "revision": snapshot.name, "sha256": None}


def verify(folder: str | Path, *, data: Data | None = None, base: str | Path | None = None) -> Verification:
    """Compare a folder written by asepsis with its manifest, and what it was made from with what is given.

    Parameters
    ----------
    folder
        Written by ``save_pretrained`` of a run, a purified model, a victim or a pipeline.
    data : Data, optional
        The rows it was trained on, as they are now.
    base : str or Path, optional
        The model it was made from, as it is now.

    Returns
    -------
    Verification

    Raises
    ------
    CheckpointError
        The folder has no manifest that can be read.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    checks = _files(root, manifest.get("files"))
    if data is not None:
        checks.append(_data(data, manifest.get("data")))
    if base is not None:
        checks.append(_base(base, manifest.get("origin")))
    return Verification(str(folder), tuple(checks), manifest)


def check_unaltered(folder: str | Path, manifest: dict[str, Any], *names: str) -> None:
    """Raise ``CheckpointError`` where a file of these that is there is not what the manifest says it was."""
    listed = manifest.get("files")
    for name in names:
        path = Path(folder) / name
        if not isinstance(listed, dict) or not path.is_file():
            continue
        found = _compared(name, _described(path), listed.get(name))
        if found.status != "same":
            raise CheckpointError(
                f"{path} is not what {MANIFEST} says it was; asepsis verify {folder} compares all of it"
            )


def _files(root: Path, listed: Any) -> list[Check]:
    if not isinstance(listed, dict):
        return [Check("files", "unknown", "the manifest lists none; it is of an earlier version")]
    here = _names(root)
    checks = []
    for name in sorted({*listed, *here}):
        if name not in here:
            checks.append(Check(name, "missing", "the manifest lists it"))
        elif name not in listed:
            checks.append(Check(name, "added", "the manifest does not list it"))
        else:
            checks.append(_compared(name, _described(root / name), listed[name]))
    return checks


def _compared(name: str, now: dict[str, Any], then: Any) -> Check:
    if not isinstance(then, dict) or now["sha256"] != then.get("sha256"):
        size = then.get("bytes") if isinstance(then, dict) else None
        return Check(name, "changed", f"{now['bytes']} bytes, {now['sha256'][:12]}...; there were {size!r}")
    return Check(name, "same")


def _data(data: Data, then: Any) -> Check:
    if not isinstance(then, dict) or "fingerprint" not in then:
        return Check("data", "unknown", "it was made without data")
    if data.fingerprint == then["fingerprint"]:
        return Check("data", "same")
    return Check(
        "data", "changed", f"{len(data)} rows, {data.fingerprint[:12]}...; there were {then.get('rows')!r}"
    )


def _base(base: str | Path, origin: Any) -> Check:
    roles = origin if isinstance(origin, dict) else {}
    then = roles.get("base") or roles.get("model")
    now = identity(base)
    if not isinstance(then, dict):
        return Check("base", "unknown", "the manifest does not say; the model was handed over in memory")
    for key in ("sha256", "revision"):
        if now[key] is not None and then.get(key) is not None:
            if now[key] == then[key]:
                return Check("base", "same")
            return Check("base", "changed", f"{key} {now[key]}; it was {then[key]!r}")
    return Check("base", "unknown", f"{now['name']} and {then.get('name')!r} are of different kinds")


def _names(root: Path) -> list[str]:
    """Every file below a folder but the manifest, by its path with slashes. Links are files of their own: not followed."""
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if (path.is_file() or path.is_symlink()) and name != MANIFEST:
            found.append(name)
    return found


def _described(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        return {"bytes": 0, "sha256": hashlib.sha256(b"link " + bytes(path.readlink())).hexdigest()}
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
