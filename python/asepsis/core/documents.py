"""JSON that somebody else wrote: bounded in size and depth, and nothing said twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asepsis.errors import ModelError

#: Bytes of the largest JSON file that is read whole. The index of a model of a trillion parameters has 13 million; parsed,
#: a hostile file of this size takes about 30 times as much memory.
MOST_BYTES = 32 << 20


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is larger than ``most`` bytes, not UTF-8, malformed, nested too deeply, or says something twice.
    """
    with path.open("rb") as file:
        raw = file.read(most + 1)  # not stat: what grows while it is read, or has no size, is cut here too
    if len(raw) > most:
        raise ValueError(f"{path} has more than {most:,} bytes, which no file of its kind needs")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: once(pairs, str(path)))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: {error}") from error


def once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Make a JSON object of pairs, refusing a name that is there twice: readers would disagree about which holds."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ModelError(
            f"{where} has {twice!r} twice, so what it says depends on who reads it; do not use it"
        )
    return found
