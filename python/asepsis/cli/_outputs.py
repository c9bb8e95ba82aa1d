"""Output paths, checked before the work: a mistyped folder must not cost a finished training."""

from __future__ import annotations

from pathlib import Path

from asepsis.errors import DataError


def check_folders(*files: Path | None) -> None:
    """Raise ``DataError`` unless the folder of every given file exists."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise DataError(f"{file}: cannot be written, there is no folder {file.parent}")
