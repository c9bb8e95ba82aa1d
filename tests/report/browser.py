"""Headless Chromium over its debugging pipe: nothing to install but the browser itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# what sticks out of the page to the right, but for what scrolls inside a box of its own
_OUTSIDE = """
(() => {
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  const out = [...document.querySelectorAll('main *')].filter(e => {
    if (e.closest('svg, .scroll, pre') && !e.matches('svg, .scroll, pre')) return false;
    return e.getBoundingClientRect().right > window.innerWidth + 1;
  });
  return JSON.stringify({wide, out: out.slice(0, 5).map(e => e.tagName + ' ' + e.textContent.slice(0, 40)),
    letters: Math.min(...[...document.querySelectorAll('svg text')].map(e => {
      const m = e.getScreenCTM(); return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b); }), 99),
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
    height: document.documentElement.scrollHeight});
})()
"""


class Browser:
    """One tab."""

    def __init__(self, to: int, come: int) -> None:
        self._to, self._come, self._rest = to, come, b""
        self._number = 0
        self.said: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._come, 1 << 20)
            assert chunk, "chromium went away"
            self._rest += chunk
        one, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(one)
        kind, params = answer.get("method"), answer.get("params", {})
        if kind == "Log.entryAdded":
            self.said.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.said.append(json.dumps(params)[:300])
        elif kind == "Network.requestWillBeSent" and not params["request"]["url"].startswith("file:"):
            self.said.append(f"loads {params['request']['url']}")
        elif kind == "Page.loadEventFired":
            self.loaded = True
        return answer

    def look(self, page: Path, *, width: int, dark: bool, picture: Path | None = None) -> dict[str, Any]:
        """Open a page and measure it; ``said`` holds all that console and network had to say."""
        self.said.clear()
        self.loaded = False
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while not self.loaded:
            self._next()
        found: dict[str, Any] = json.loads(
            self.ask("Runtime.evaluate", expression=_OUTSIDE)["result"]["value"]
        )
        if picture is not None:
            clip = {"x": 0, "y": 0, "width": width, "height": min(found["height"], 9000), "scale": 1}
            shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
            picture.write_bytes(base64.b64decode(shot["data"]))
        return found | {"said": list(self.said)}


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium for a while."""
    assert CHROMIUM is not None
    read_theirs, write_ours = os.pipe()
    read_ours, write_theirs = os.pipe()
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += ["--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"]
    words += [f"--user-data-dir={profile}", "about:blank"]
    script = f'exec "$@" 3<&{read_theirs} 4>&{write_theirs}'
    process = subprocess.Popen(
        ["bash", "-c", script, "chromium", *words],
        pass_fds=(read_theirs, write_theirs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_theirs)
    os.close(write_theirs)
    try:
        yield Browser(write_ours, read_ours)
    finally:
        os.close(write_ours)  # the browser ends with its pipe
        os.close(read_ours)
        process.terminate()
        process.wait(30)
