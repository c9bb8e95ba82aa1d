"""The most memory that a piece of work held."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from types import TracebackType

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Measure the most memory that the work inside a ``with`` adds: on the GPU where there is one, else in this process (Linux).

    Attributes
    ----------
    bytes : int or None
        Above what was held when it began; None where neither can be measured.
    """

    bytes: int | None = None
    _before = 0

    def __enter__(self) -> Peak:
        """Give back what earlier work left, and forget what it reached."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        elif _RESET.exists():
            # freed memory that the allocator keeps would be used again, and not seen
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim is not None:
                trim(0)
            _RESET.write_text("5")  # proc(5): the resident set's high-water mark starts anew
            self._before = _held("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read what was reached."""
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        elif _RESET.exists():
            self.bytes = _held("VmHWM") - self._before


def _held(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
