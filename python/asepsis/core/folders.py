"""Write a folder whole or not at all, and files to the disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from asepsis.errors import CheckpointError

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill that takes the place of ``target`` at the end, or vanishes if filling it fails.

    What is there before stays until the new folder is complete and on the disk. On Linux the two are then exchanged in one
    step; where the file system cannot, the old folder is moved aside first, and a process killed between the two renames
    leaves it as ``.NAME-old-*`` beside. A process killed earlier leaves ``.NAME-*``, which no reader takes for the folder.

    Raises
    ------
    CheckpointError
        The disk is full, or the place may not be written to. What was there before is as it was.
    """
    target = Path(os.path.realpath(target))  # a link to a folder elsewhere stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        yield scratch
        scratch.chmod(0o755)
        for part in sorted(scratch.rglob("*"), reverse=True):
            if not part.is_symlink():
                to_disk(part)
        to_disk(scratch)
        _take_place(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        # Rust's writers, of tensors and of tokenizers, say it their own way
        if isinstance(error, (OSError, SafetensorError)) or "(os error " in str(error):
            raise _not_written(target, error) from error
        raise


def to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk; nothing where folders cannot be opened."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.replace(target)
    elif _exchanged(scratch, target):
        shutil.rmtree(scratch, ignore_errors=True)  # it is the old folder now
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        target.replace(aside / target.name)
        try:
            scratch.replace(target)
        except OSError:
            (aside / target.name).replace(target)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    to_disk(target.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where kernel and file system can."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return swap is not None and swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _not_written(target: Path, error: BaseException) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{target} was not written: {reason}; what was there before is as it was")
