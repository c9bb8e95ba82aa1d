"""A ledger's file: safetensors, with a checksum, replaced whole or not at all.

The tensors are those of ``_native.Ledger.state``. The metadata has ``format``, ``n``, ``ema_decay`` (a hexadecimal
float, so that no digit is lost) and ``crc32``, over the other settings and over name, dtype and bytes of every tensor
in the order of their names. A file that was cut short, overwritten or edited is refused; nothing in it is executed.
"""

from __future__ import annotations

import os
import re
import secrets
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from asepsis import _native
from asepsis.core.folders import to_disk
from asepsis.errors import LedgerError

_FORMAT = "asepsis ledger 1"
_SETTINGS = ("format", "n", "ema_decay")
_NAME = re.compile(r"epochs_seen|loss_ema|rank_ema|rank_sum|(0|[1-9][0-9]{0,8}|open)\.(losses|observed)")


def write(ledger: _native.Ledger, path: str | os.PathLike[str]) -> None:
    """Write the state of a ledger; a file that is there is replaced in one step, once all is on the disk.

    Raises
    ------
    LedgerError
        The folder is missing or full, or may not be written to. The old file is then as it was.
    """
    path = Path(path)
    decay, tensors = ledger.state()
    settings = {"format": _FORMAT, "n": str(ledger.n_samples), "ema_decay": decay.hex()}
    settings["crc32"] = f"{_checksum(settings, tensors):08x}"
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            save_file(tensors, new, metadata=settings)
            to_disk(new)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        raise LedgerError(f"the ledger cannot be written to {path}: {error}") from error


def read(path: str | os.PathLike[str]) -> _native.Ledger:
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
            strangers = [name for name in file.keys() if not _NAME.fullmatch(name)]  # noqa: SIM118
            if strangers:
                raise LedgerError(f"{path} is no ledger: it has a tensor called {strangers[0]!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        n, decay = int(settings["n"]), float.fromhex(settings["ema_decay"])
        wanted, got = int(settings["crc32"], 16), _checksum(settings, tensors)
    except LedgerError:
        raise
    # safetensors answers a header that lies with almost any of these
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise LedgerError(f"{path} cannot be read as a ledger: {error}") from error
    if wanted != got:
        raise LedgerError(
            f"{path} is not as it was written: its checksum is {got:08x}, {wanted:08x} was noted; "
            "restore it from a copy, or start a new ledger"
        )
    try:
        return _native.Ledger.from_state(n, decay, tensors)
    except OverflowError as error:
        raise LedgerError(f"{path} has {n} samples, more than there can be") from error


def _checksum(settings: dict[str, str], tensors: dict[str, npt.NDArray[Any]]) -> int:
    total = zlib.crc32("\n".join(settings[name] for name in _SETTINGS).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        total = zlib.crc32(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(np.uint8).data, total)
    return total
