from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest


@pytest.fixture
def overtakes() -> Callable[[Callable[[], object]], bool]:
    """Say whether another thread goes on while a call runs: once in twenty calls is enough.

    A call that keeps the GIL is never overtaken. One that lets go may be over before a busy machine comes to the other thread.
    """

    def once(call: Callable[[], object]) -> bool:
        started, done = threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            call()
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        overtaken = not done.is_set()
        thread.join()
        return overtaken

    def ever(call: Callable[[], object]) -> bool:
        call()  # the first call loads numpy's table of functions, which lets others run anyhow
        interval = sys.getswitchinterval()
        # for a minute the interpreter takes the GIL from nobody: only a thread that lets go is overtaken
        sys.setswitchinterval(60)
        try:
            return any(once(call) for _ in range(20))
        finally:
            sys.setswitchinterval(interval)

    return ever
