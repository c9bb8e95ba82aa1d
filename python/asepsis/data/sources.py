"""Where rows come from: a file, a data set object, the hub, a list in memory. One stream of placed rows for each."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asepsis.data.formats import EXTENSIONS, iter_rows
from asepsis.data.values import listed, shown
from asepsis.errors import DataError

Stream = Iterator[tuple[str, Mapping[str, Any]]]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def open_source(source: Any, *, split: str) -> tuple[str, Stream]:
    """Return the name of a source, for messages, and its rows, each with its place; see :func:`asepsis.data.read`."""
    if isinstance(source, Path):
        return str(source), iter_rows(source)
    if isinstance(source, str):
        if Path(source).exists() or _looks_like_a_path(source):
            return source, iter_rows(source)
        return _data_set(_from_hub(source, split), source, split)
    # A data set object can only exist where `datasets` is loaded already; asking sys.modules keeps it unimported.
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(
        source, (datasets.Dataset, datasets.DatasetDict, datasets.IterableDataset)
    ):
        return _data_set(source, "datasets.Dataset", split)
    if isinstance(source, (list, tuple)):
        return "memory", _numbered(source, "memory")
    raise DataError(
        f"cannot read rows from {type(source).__name__}; expected a file, a hub id, a datasets.Dataset, a list of dicts or Data"
    )


def _numbered(rows: Iterable[Any], name: str) -> Stream:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{name}, row {index}: expected a dict, got {type(row).__name__} {shown(row)}")
        yield f"row {index}", row


def _looks_like_a_path(source: str) -> bool:
    if source.lower().endswith(EXTENSIONS) or not _HUB_ID.fullmatch(source):
        return True
    # `reviews/train` could be either; a folder `reviews` right here decides it.
    return "/" in source and Path(source).parent.is_dir()


def _from_hub(source: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub client raises a dozen kinds, from HTTP to arrow
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"{source}: no such file here, and not to be had from the Hugging Face hub (split {split!r}): {reason}"
        ) from error


def _data_set(data_set: Any, name: str, split: str) -> tuple[str, Stream]:
    import datasets

    if isinstance(data_set, datasets.DatasetDict):
        if split not in data_set:
            raise DataError(f"{name}: no split {split!r}; splits there: {listed(data_set)}")
        data_set = data_set[split]
    # Undo a set_format("torch"): labels are wanted as plain numbers.
    return name, _numbered(data_set.with_format(None), name)
