"""A ledger's file: safetensors, with a checksum, replaced whole or not at all.

The tensors are those of ``_native.Ledger.state`` and ``epoch``, written and read one at a time. The metadata has ``format``, ``n``, ``ema_decay`` (a hexadecimal
float, so that no digit is lost) and ``crc32``, over the other settings and over name, dtype and bytes of every tensor
in the order of their names. A file that was cut short, overwritten or edited is refused; nothing in it is executed.
"""

from __future__ import annotations

import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from asepsis import _native
from asepsis.core.folders import to_disk
from asepsis.core.weights.write import SafetensorsWriter
from asepsis.errors import LedgerError

_FORMAT = "asepsis ledger 1"
_SETTINGS = ("format", "n", "ema_decay")
_NAME = re.compile(r"epochs_seen|loss_ema|rank_ema|rank_sum|(0|[1-9][0-9]{0,8}|open)\.(losses|observed)")


class _Arrays(Mapping[str, npt.NDArray[Any]]):
    """Arrays by name, each made when it is asked for: a ledger may be larger than the memory."""

    def __init__(self, names: Iterable[str], get: Callable[[str], npt.NDArray[Any]]) -> None:
        self._names = dict.fromkeys(names)
        self._get = get

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _arrays_of(ledger: _native.Ledger) -> tuple[float, _Arrays]:
    # closed epochs never change, so all of this is the ledger at one moment
    decay, state = ledger.state()
    n_columns = int(ledger.n_columns)

    def get(name: str) -> npt.NDArray[Any]:
        if name in state:
            return state[name]
        index, _, part = name.partition(".")
        return ledger.epoch(int(index))[part == "observed"]

    closed = [f"{index}.{part}" for index in range(n_columns) for part in ("losses", "observed")]
    return decay, _Arrays([*state, *closed], get)


def write(ledger: _native.Ledger, path: str | os.PathLike[str]) -> None:
    """Write the state of a ledger; a file that is there is replaced in one step, once all is on the disk.

    Raises
    ------
    LedgerError
        The folder is missing or full, or may not be written to. The old file is then as it was.
    """
    path = Path(path)
    decay, arrays = _arrays_of(ledger)
    settings = {"format": _FORMAT, "n": str(ledger.n_samples), "ema_decay": decay.hex()}
    settings["crc32"] = f"{_checksum(settings, arrays):08x}"
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    places = [(name, *_place(name, ledger.n_samples)) for name in arrays]
    try:
        try:
            writer = SafetensorsWriter(new, places, metadata=settings)
            for name, array in arrays.items():
                writer.region(name)[:] = array.view(np.uint8)
            to_disk(new)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        to_disk(path.parent)
    except OSError as error:
        raise LedgerError(f"the ledger cannot be written to {path}: {error}") from error


def _place(name: str, n: int) -> tuple[str, tuple[int]]:
    """The dtype, as safetensors names it, and shape of a tensor of a ledger of ``n`` samples."""
    if name.endswith(".observed"):
        return "U64", (-(-n // 64),)
    return {"epochs_seen": "U32", "rank_sum": "F64"}.get(name, "F32"), (n,)


def read(
    path: str | os.PathLike[str], *, memory_limit: int, folder: str | os.PathLike[str] | None
) -> _native.Ledger:
    """The ledger of a file that :func:`write` wrote.

    Raises
    ------
    LedgerError
        The file cannot be read, is no ledger, or is not as it was written.
    """
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            settings = file.metadata() or {}
            if settings.get("format") != _FORMAT or set(settings) != {*_SETTINGS, "crc32"}:
                raise LedgerError(f"{path} is no ledger: its metadata is {settings}, {_FORMAT!r} was wanted")
            arrays = _Arrays(file.keys(), file.get_tensor)
            strangers = [name for name in arrays if not _NAME.fullmatch(name)]
            if strangers:
                raise LedgerError(f"{path} is no ledger: it has a tensor called {strangers[0]!r}")
            n, decay = int(settings["n"]), float.fromhex(settings["ema_decay"])
            wanted, got = int(settings["crc32"], 16), _checksum(settings, arrays)
            if wanted != got:
                raise LedgerError(
                    f"{path} is not as it was written: its checksum is {got:08x}, {wanted:08x} was noted; "
                    "restore it from a copy, or start a new ledger"
                )
            if n >= 1 << 63:
                raise LedgerError(f"{path} has {n} samples, more than there can be")
            return _native.Ledger.from_state(n, decay, arrays, memory_limit=memory_limit, folder=folder)
    except LedgerError:
        raise
    # safetensors answers a header that lies with almost any of these
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise LedgerError(f"{path} cannot be read as a ledger: {error}") from error


def _checksum(settings: dict[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    total = zlib.crc32("\n".join(settings[name] for name in _SETTINGS).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total = zlib.crc32(f"\n{name} {array.dtype.str} {array.shape}\n".encode(), total)
        total = zlib.crc32(array.reshape(-1).view(np.uint8).data, total)
    return total
