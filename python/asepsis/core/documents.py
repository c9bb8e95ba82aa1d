"""JSON and YAML that somebody else wrote: bounded in size and depth, and nothing said twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asepsis.errors import ModelError

#: Bytes of the largest JSON file that is read whole. The index of a model of a trillion parameters has 13 million; parsed,
#: a hostile file of this size takes about 30 times as much memory.
MOST_BYTES = 32 << 20
#: Bytes of the largest YAML file. Settings have a few thousand, and its reader takes seconds for these.
MOST_YAML = 1 << 18
_DEEPEST = 50


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is larger than ``most`` bytes, not UTF-8, malformed, nested too deeply, or says something twice.
    """
    text = _read(path, most)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: once(pairs, str(path)))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: {error}") from error


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds: plain values, no objects. An alias is refused: few of them unfold to billions of values.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is larger than ``MOST_YAML`` bytes, not UTF-8, malformed, nested too deeply, says something twice, or has an alias.
    """
    import yaml

    text = _read(path, MOST_YAML)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError(f"{path} is nested too deeply: {_DEEPEST} levels at most are taken")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{path} has the alias *{event.anchor}; write out what it stands for")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_once(node, str(path))
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    except OverflowError as error:
        raise ValueError(f"{path} holds a date or number that there is not: {error}") from error


def _read(path: Path, most: int) -> str:
    with path.open("rb") as file:
        raw = file.read(most + 1)  # not stat: what grows while it is read, or has no size, is cut here too
    if len(raw) > most:
        raise ValueError(f"{path} has more than {most:,} bytes, which no file of its kind needs")
    return raw.decode("utf-8")


def _check_once(node: Any, where: str) -> None:
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.id == "mapping":
            once([(str(key.value), None) for key, _ in one.value], where)
            waiting += [part for pair in one.value for part in pair]
        elif one.id == "sequence":
            waiting += one.value


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
