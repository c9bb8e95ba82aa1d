"""The files of a model folder that may be touched: those that lie in it, JSON objects among them, no pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asepsis.core.documents import read_json
from asepsis.errors import ModelError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: Endings of weights that only unpickling, or another framework, can read
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".ot")


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file by its bare name, refusing names and links that lead out of the folder.

    The links of the hub's own cache, from a snapshot to the blobs beside it, are its way of storing and are followed.
    """
    # PurePosixPath would read 'a\\b' as one name, and Windows as two
    if not name or name in {".", ".."} or any(c in name for c in "/\\\0:"):
        raise ModelError(
            f"{folder} names the file {name!r}, which is no plain file name; do not use this model"
        )
    path = folder / name
    check_link(folder, path)
    return path


def check_link(folder: Path, path: Path) -> None:
    """Raise ``ModelError`` where a path of a folder, or of a folder in it, is a link that leads out of it."""
    if not path.is_symlink():
        return
    home, real = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not real.is_relative_to(home) and not real.is_relative_to(blobs):
        raise ModelError(f"{path} is a link that leads out of its folder; put the file itself there")


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON object of the folder, empty where there is no such file.

    Raises
    ------
    ModelError
        The file is not a JSON object, says something twice, or is larger or deeper than any honest one.
    """
    path = inside(folder, name)
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must be a JSON object, got {type(content).__name__}; download it again")
    return content


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """Return the files that hold a checkpoint's weights, each with the tensors that an index expects in it.

    Raises
    ------
    ModelError
        There are no safetensors, a shard is missing, or the index points elsewhere.
    """
    single = inside(folder, SINGLE)
    if single.is_file():
        return {single: None}
    listed = read_object(folder, INDEX).get("weight_map")
    if isinstance(listed, dict) and listed:
        shards: dict[Path, list[str] | None] = {}
        for tensor, name in listed.items():
            if not isinstance(name, str):
                raise ModelError(f"{folder / INDEX}: {tensor!r} must name a file, got {name!r}")
            names = shards.setdefault(inside(folder, name), [])
            if names is not None:
                names.append(tensor)
        if missing := sorted(path.name for path in shards if not path.is_file()):
            raise ModelError(
                f"{folder}: {INDEX} names {len(shards)} files, {', '.join(missing[:3])} of them missing; "
                "download the model again"
            )
        return shards
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
        raise ModelError(
            f"{folder} holds {pickles[0]} and no {SINGLE}: a pickle can run code when it is read, so it is not; get the "
            "safetensors version, or convert it where that is safe: AutoModel.from_pretrained(...).save_pretrained(...)"
        )
    raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}; name a folder that save_pretrained wrote")
