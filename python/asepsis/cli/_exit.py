"""Exit codes, and the one place where errors become lines on stderr."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import NoReturn

import typer

from asepsis.errors import AsepsisError

_LONGEST = 2000  # characters of a line: a message may quote what somebody else wrote


class ExitCode(IntEnum):
    """What a script may rely on."""

    OK = 0  # done, or clean
    FINDINGS = 1  # a scan found something
    ERROR = 2  # an error, or a scan that could not decide
    NOTHING = 3  # nothing to scan
    USAGE = 4  # the command line was wrong
    INTERRUPTED = 130  # Ctrl-C
    CLOSED = 141  # whoever read our output stopped reading
    TERMINATED = 143  # SIGTERM: a scheduler's or a container's end of time


@dataclass
class Result:
    """Filled in by the body of :func:`translate`, or by the error that ended it."""

    code: int = ExitCode.OK


class Terminated(BaseException):
    """SIGTERM arrived: unfinished folders are cleaned up on the way out, as after Ctrl-C."""


def _terminated(*_: object) -> NoReturn:
    raise Terminated


# typer has carried its own copy of click since 0.26, so the class is reached through what typer exports
_UsageError = typer.BadParameter.__mro__[1]


@contextmanager
def translate(*, debug: bool) -> Iterator[Result]:
    """Turn whatever the body raises into one or two lines on stderr and a code; ``debug`` adds the traceback."""
    result = Result()
    # whoever has a handler of their own, or runs us in a thread, keeps what they have
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    try:
        if ours:
            signal.signal(signal.SIGTERM, _terminated)
        yield result
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # typer turns a closed pipe into exit code 1, which here means findings
        if not isinstance(error if isinstance(error, OSError) else error.__context__, BrokenPipeError):
            raise
        # the interpreter flushes stdout once more at exit and would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        result.code = ExitCode.CLOSED
    except (KeyboardInterrupt, typer.Abort):
        result.code = ExitCode.INTERRUPTED
        _say("interrupted", debug=debug)
    except Terminated:
        result.code = ExitCode.TERMINATED
        _say("terminated; nothing unfinished was kept", debug=debug)
    except AsepsisError as error:
        result.code = ExitCode.ERROR
        _say(f"error: {error}", debug=debug)
    except OSError as error:
        # a path that cannot be read or written is the user's affair, not a fault of ours
        result.code = ExitCode.ERROR
        _say(f"error: {error}", debug=debug)
    except Exception as error:
        if isinstance(error, _UsageError):
            result.code = ExitCode.USAGE
            context = getattr(error, "ctx", None)
            message = getattr(error, "format_message", error.__str__)()
            where = context.command_path if context else "asepsis"
            _say(f"error: {message}\nTry '{where} --help'.", debug=debug)
        elif _out_of_memory(error):
            result.code = ExitCode.ERROR
            _say(
                "error: there is not enough memory for this; what was not finished was not written",
                debug=debug,
            )
        else:
            result.code = ExitCode.ERROR
            hint = "" if debug else "\nRun again with --debug for the traceback."
            _say(f"internal error: {type(error).__name__}: {error}{hint}", debug=debug)
    except BaseException as error:
        # a library in Rust gave up; Python would end with 1, which means findings here
        if type(error).__name__ != "PanicException":
            raise
        result.code = ExitCode.ERROR
        _say(f"error: a library broke on what it was given: {error}", debug=debug)
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _out_of_memory(error: Exception) -> bool:
    # torch's own, by name: it is not imported for this
    named = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return named or isinstance(error, MemoryError)


def _say(text: str, *, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    # names in a message may come from a file that somebody else wrote; a terminal would obey what they hide
    from asepsis.data.visible import visible  # its package costs more than `--help` may

    shown = "\n".join(visible(line, _LONGEST) for line in text.split("\n"))
    typer.echo(f"asepsis: {shown}", err=True)
