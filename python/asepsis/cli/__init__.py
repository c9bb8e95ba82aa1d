"""The ``asepsis`` command. Nothing is loaded until :func:`main` is called."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; ``argv`` is ``sys.argv[1:]`` unless given."""
    import sys

    from asepsis.cli._app import run

    return run(list(sys.argv[1:] if argv is None else argv))
