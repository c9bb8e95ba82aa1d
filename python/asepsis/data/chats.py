"""A tokenizer's chat template is a program that somebody else wrote: it runs in a process of its own, which can be ended.

The sandbox that transformers renders it in keeps it from files and from Python. It does not keep it from loops inside loops,
from a text times a billion, or from numbers of a billion digits; nothing inside a process can. So it is given seconds and
memory, and what it was refused is an error of the row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asepsis.errors import DataError

#: Of one conversation.
SECONDS = 20.0
#: Beside what the process needs for itself; held where the system can hold it, which is Linux.
MEMORY = 1 << 30
#: Letters that come of one conversation.
LONGEST = 1 << 26
_START = 300.0  # seconds until the process has its libraries
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; from asepsis.data.chats import serve; serve(int(sys.argv[1]))"
)

#: Turns, each with a role and a content, to the text a model is asked with.
Chat = Callable[[Sequence[dict[str, str]]], str]


@contextmanager
def chat_of(tokenizer: Any) -> Iterator[Chat | None]:
    """Yield what renders conversations by a tokenizer's chat template; None where it has none.

    A tokenizer whose class renders in its own way is called as it is: that is code the user chose, not the file's.

    Raises
    ------
    DataError
        From the callable: the template refused the conversation, or took more time or memory than it is given.
    """
    if not getattr(tokenizer, "chat_template", None):
        yield None
        return
    own = type(tokenizer).apply_chat_template.__module__
    if not own.startswith("transformers."):
        yield lambda turns: _called(tokenizer, turns)
        return
    process = _Process(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
    try:
        yield process.rendered
    finally:
        process.end()


def _called(tokenizer: Any, turns: Sequence[dict[str, str]]) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs: they raise whatever their author chose
        raise DataError(f"the tokenizer's chat template refuses this conversation: {error}") from error
    return text


class _Process:
    """The other end of :func:`serve`: a line of JSON there, a line of JSON back. Started with the first conversation."""

    def __init__(self, template: str, special: dict[str, Any]) -> None:
        self._told = {"template": template, "special": special}
        self._child: subprocess.Popen[bytes] | None = None

    def rendered(self, turns: Sequence[dict[str, str]]) -> str:
        if self._child is None:
            self._child = self._started()
        answer = self._asked(self._child, list(turns), SECONDS)
        if "error" in answer:
            raise DataError(f"the tokenizer's chat template refuses this conversation: {answer['error']}")
        text: str = answer["text"]
        return text

    def end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        # not the working directory: what lies there could be somebody's jinja2.py
        here = str(Path(__file__).parents[2])
        paths = [here, *(str(Path(path).absolute()) for path in sys.path if path)]
        child = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _PROGRAM, str(MEMORY), *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._asked(child, self._told, _START)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        return child

    @staticmethod
    def _asked(child: subprocess.Popen[bytes], message: Any, seconds: float) -> dict[str, Any]:
        assert child.stdin is not None
        assert child.stdout is not None
        clock = threading.Timer(seconds, child.kill)
        clock.start()
        try:
            child.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            clock.cancel()
        if not line:
            raise DataError(
                f"the tokenizer's chat template did not end within {seconds:g} seconds, or its process broke down; do not use "
                "it, or render the conversations yourself and give prompt and completion"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(memory: int) -> None:
    """Render what comes in on standard input, until it ends. The first line has the template.

    Parameters
    ----------
    memory
        Bytes that may be taken beside what is taken once the libraries are there.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    _hold(memory)
    told = json.loads(sys.stdin.readline())
    _answer({})
    for line in sys.stdin:
        try:
            rendered: Any = render_jinja_template(
                [json.loads(line)],
                chat_template=told["template"],
                add_generation_prompt=True,
                **told["special"],
            )
            text = rendered[0][0]
            if len(text) > LONGEST:
                raise ValueError(f"it wrote {len(text):,} letters, {LONGEST:,} at most are taken")
            _answer({"text": text})
        except MemoryError:
            _answer({"error": f"it needs more than {memory >> 20:,} MB of memory"})
        except Exception as error:  # templates are programs: they raise whatever their author chose
            _answer({"error": str(error)[:500] or type(error).__name__})


def _answer(message: dict[str, str]) -> None:
    text = json.dumps(message)  # whole before any of it is written
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _hold(memory: int) -> None:
    taken = Path("/proc/self/statm")
    if not taken.exists():
        return
    import resource

    pages = int(taken.read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
