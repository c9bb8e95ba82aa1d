"""Run a function in a forked child that may be limited, stripped of rights or killed."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from hostile.tensors import parts

#: What ended a child: an exit code, or the negative number of a signal; and the last line of its error.
Ended = tuple[int, str]


def run(function: Callable[[], object], *, file_size: int | None = None, nobody: bool = False) -> Ended:
    """Run it to its end. ``file_size`` is where a disk is full for any one file; ``nobody`` may write nowhere."""

    def limited() -> object:
        if file_size is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if nobody and os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return function()

    return ended(*start(limited))


def start(function: Callable[[], object]) -> tuple[int, int]:
    """Start it; return the child's id and where its error can be read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code, said = 0, ""
    try:
        os.close(reader)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the child lives
        answer = function()
        code = answer if isinstance(answer, int) else 0
    except BaseException as error:
        code, said = 3, f"{type(error).__name__}: {error}"
        if os.environ.get("SHOW_CHILDREN"):
            said += traceback.format_exc()
    os.write(writer, said.encode()[:60_000])
    os._exit(code)


def ended(child: int, reader: int) -> Ended:
    """Wait for a child; return how it ended and what it said."""
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def killed(function: Callable[[], object], *, after: float, by: int = signal.SIGKILL) -> Ended:
    """Run it, and send a signal after some seconds."""
    child, reader = start(function)
    time.sleep(after)
    os.kill(child, by)
    return ended(child, reader)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; of safetensors, the header in one order: the library writes any."""
    return {str(p.relative_to(folder)): _content(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _content(path: Path) -> bytes:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    try:
        header, body = parts(path)
    except (ValueError, struct.error):
        return path.read_bytes()
    return json.dumps(header, sort_keys=True).encode() + body
