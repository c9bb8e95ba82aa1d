"""The most memory that a piece of work held."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Measure the largest memory inside a ``with``: of the GPU where there is one, else of this process (Linux).

    Attributes
    ----------
    bytes : int or None
        None where neither can be measured.
    """

    bytes: int | None = None

    def __enter__(self) -> Peak:
        """Forget what was reached before."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _RESET.exists():
            _RESET.write_text("5")  # proc(5): the resident set's high-water mark starts anew
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read what was reached."""
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()
        elif _RESET.exists():
            lines = _STATUS.read_text(encoding="ascii").splitlines()
            self.bytes = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
