"""Whatever another library raises on files that somebody else wrote becomes one error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from asepsis.errors import AsepsisError, ModelError


@contextlib.contextmanager
def foreign(doing: str, raising: type[AsepsisError] = ModelError) -> Iterator[None]:
    """Turn what a library's reader raises into ``raising``, with a message that begins with ``doing``.

    Only the library's call belongs inside: a fault of ours would be renamed as well.
    """
    try:
        yield
    except AsepsisError:
        raise
    except Exception as error:
        raise raising(f"{doing}: {first_line(error)}") from error
    except BaseException as error:
        # a panic in Rust derives from BaseException; Ctrl-C does too, and must not be caught
        if type(error).__name__ != "PanicException":
            raise
        raise raising(f"{doing}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or its kind where it says nothing."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text or type(error).__name__
