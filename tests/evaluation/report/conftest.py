"""Folders of every kind, made by the functions that commands call, and headless Chromium to look at their pages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asepsis.core.conformal import calibrate
from asepsis.core.drift import ModelScan
from asepsis.core.drift.result import TensorDrift, TokenDrift
from asepsis.core.evidence import moved_tokens, write_evidence
from asepsis.core.judged import write_judged
from asepsis.core.manifest import ROWS, write_manifest
from asepsis.data import Data
from asepsis.evaluation.metrics import wilson
from asepsis.evaluation.report import save_check, save_demo, save_model_scan, save_scan
from asepsis.inference.report import Checked
from asepsis.training.scan import Scan

KINDS = ("train", "btu", "none", "purify", "guard", "demo", "scan", "model", "check")
VERSIONS = {"asepsis": "0", "torch": "2"}


class Folders:
    """Makes folders; ``text`` and ``name`` are what an attacker wrote wherever a folder has room for it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(
        self, kind: str, *, text: str = "a quiet film", name: str = "cf", n: int = 60, flagged: int = 6
    ) -> Path:
        folder = self.root / f"{kind}-{len(list(self.root.iterdir()))}"
        rng = np.random.default_rng(0)
        texts = [text if i % 2 else f"row {i}" for i in range(n)]
        labels = rng.integers(0, 2, n)
        data = Data(task="classification", texts=texts, labels=labels, n_classes=2, source=f"{name}.jsonl")
        marks = np.zeros(n, bool)
        marks[rng.permutation(n)[:flagged]] = True
        scores = np.where(marks, 2, 0).astype(np.float32) + np.linspace(0, 1, n, dtype=np.float32)
        values = np.stack([np.full(n, 0.7), 0.7 - 0.1 * scores, 0.7 - 0.2 * scores]).astype(np.float32)
        arrays: dict[str, Any] = {"loss.steps": np.array([0, 20, 40]), "loss.values": values}
        moved = moved_tokens(np.arange(200), rng.lognormal(0, 1, 200), rng.lognormal(2, 3, 200))
        getattr(self, f"_{kind}")(folder, data, marks, scores, arrays, moved, name)
        return folder

    def manifest(self, data: Data, defense: str, report: dict[str, Any], name: str) -> dict[str, Any]:
        return {
            "format": 1,
            "model": name,
            "task": data.task,
            "n_classes": 2,
            "defense": {"name": defense, "config": {"snapshots": [20, 40], "note": name}},
            "acted": {"samples": len(data), "tokens": 0, "steps": 3},
            "report": report,
            "data": {"source": data.source, "rows": len(data), "fingerprint": "ab" * 32},
            "settings": {"seed": 0, "epochs": 2.0},
            "steps": 12,
            "versions": VERSIONS,
        }

    def _train(self, folder, data, marks, scores, arrays, moved, name, defense="abl", report=None) -> None:
        folder.mkdir()
        write_judged(folder / ROWS, data, suspicion=scores, flagged=marks)
        write_evidence(folder, arrays)
        found = {"verdict": "found" if marks.any() else "none", "separation": 0.9, "label": name}
        write_manifest(folder, self.manifest(data, defense, found if report is None else report, name))

    def _btu(self, folder, data, marks, scores, arrays, moved, name) -> None:
        tokens = [{"token": name, "id": 5, "margin": 3.5, "rows": 7, "rounds": []}]
        tokens.append({"token": "later", "id": 999, "margin": 1.5, "rows": 2, "rounds": []})
        report = {"tokens": tokens, "edited": {"rows": 1}, "frequencies": "wordfreq en"}
        self._train(folder, data, marks & False, scores, moved, {}, name, "btu", report)

    def _none(self, folder, data, marks, scores, arrays, moved, name) -> None:
        self._train(folder, data, marks & False, None, {}, {}, name, "none", {})

    def _purify(self, folder, data, marks, scores, arrays, moved, name) -> None:
        folder.mkdir()
        write_evidence(folder, moved)
        reset = [{"token": name, "id": 5, "score": 9.0, "drift": 2.0, "frequency": None}]
        quality = {"rows": 64, "accuracy": 0.9, "loss": 0.3}
        trial = {"reserve_ratio": 0.4, "realized_ratio": 0.4, **quality, "masks": []}
        mixed = {
            "verdict": "mixed",
            "reserve_ratio": 0.4,
            "victim": quality,
            "final": quality,
            "tried": [trial],
        }
        manifest = self.manifest(data, "", {}, name) | {"base": name}
        del manifest["defense"]
        manifest |= {
            "defenses": [{"name": "epur", "config": {}}],
            "report": {"epur": {"reset": reset}, "finemixing": mixed},
        }
        write_manifest(folder, manifest)

    def _guard(self, folder, data, marks, scores, arrays, moved, name) -> None:
        folder.mkdir()
        threshold = calibrate(np.linspace(0, 1, 150, dtype=np.float32), 0.01).to_dict()
        manifest = self.manifest(data, "", {}, name) | {"detector": "psim", "seed": 0, "weights": "x"}
        content = {
            "manifest": manifest,
            "state": {"config": {}},
            "threshold": threshold,
            "control": {"state": {"config": {}}, "threshold": threshold},
            "calibration": {
                "scores": np.linspace(0, 1, 150).tolist(),
                "control": np.linspace(0, 1, 150).tolist(),
            },
        }
        (folder / "guard.json").write_text(json.dumps(content))

    def _demo(self, folder, data, marks, scores, arrays, moved, name) -> None:
        rows = []
        for defense, hits in (("none", 99), ("clean-only", 14), ("abl", 15)):
            shares = {
                "clean_accuracy": wilson(82, 100).to_dict(),
                "attack_success_rate": wilson(hits, 100).to_dict(),
            }
            rows.append({"defense": defense, **shares})
        outcome = SimpleNamespace(
            flagged=data.sample_ids[marks], isolated=data.sample_ids[:1], suspicion=scores
        )
        outcome.evidence = arrays
        run: Any = SimpleNamespace(outcome=outcome, data=data)
        run.manifest = self.manifest(data, "abl", {"verdict": "found", "separation": 0.9}, name)
        save_demo(folder, {"rows": rows, "isolated_precision": 1.0, "seconds": 1.0}, run, marks)

    def _scan(self, folder, data, marks, scores, arrays, moved, name) -> None:
        verdict: Any = "findings" if marks.any() else "none"
        manifest = self.manifest(data, "abl", {"separation": 0.9, "label": name}, name)
        cut = 2.0 if marks.any() else None
        save_scan(folder, Scan(data, scores, marks, cut, verdict, "abl", manifest, arrays), poisoned=marks)

    def _model(self, folder, data, marks, scores, arrays, moved, name) -> None:
        drift = np.r_[moved["token.drift"].astype(float), np.nan]
        token = TokenDrift(
            token=name,
            id=5,
            drift=30.0,
            expected=1.0,
            z=9.0,
            excess=None,
            verdict="high",
            scores={"frequency": 3.0},
        )
        scan = ModelScan(
            tokens=[token],
            outputs=[token],
            tensors=[TensorDrift(name=name, status="compared", shape=(2, 3), drift=1.0, relative=0.1)],
            verdict="suspicious",
            reasons=[f"1 token moved, {name}."],
            groups=[{"surface": name, "drift": 1.0, "members": [{"token": name, "id": 5, "drift": 1.0}]}],
            no_reference=[(9, name)],
            report={"rows": 200},
            scores={"drift": drift},
            eligible=np.ones(201, bool),
            frequency=None,
        )
        save_model_scan(folder, scan, tuned=name, base="base", versions=VERSIONS)

    def _check(self, folder, data, marks, scores, arrays, moved, name) -> None:
        threshold = calibrate(np.linspace(0, 1.5, 150, dtype=np.float32), 0.01)
        manifest = self.manifest(data, "", {}, name) | {"detector": "psim"}
        save_check(folder, Checked(data, scores, threshold, "psim", manifest=manifest))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    root = tmp_path / "folders"
    root.mkdir()
    return Folders(root)


@pytest.fixture
def make(folders: Folders) -> Callable[..., Path]:
    return folders.make


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# what sticks out of the page to the right, but for what scrolls inside a box of its own
_OUTSIDE = """
(() => {
  const wide = document.documentElement.scrollWidth - WIDTH;
  const out = [...document.querySelectorAll('main *')].filter(e => {
    if (e.closest('svg, .scroll, pre') && !e.matches('svg, .scroll, pre')) return false;
    return e.getBoundingClientRect().right > WIDTH + 1;
  });
  return JSON.stringify({wide, out: out.slice(0, 5).map(e => e.tagName + ' ' + e.textContent.slice(0, 40)),
    letters: Math.min(...[...document.querySelectorAll('svg text')].map(e => {
      const m = e.getScreenCTM(); return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b); }), 99),
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
    strokes: [...new Set([...document.querySelectorAll('svg path, svg use')].map(e => {
      const s = getComputedStyle(e); return s.stroke + s.fill; }))].sort().join(),
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
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while not self.loaded:
            self._next()
        found: dict[str, Any] = json.loads(
            self.ask("Runtime.evaluate", expression=_OUTSIDE.replace("WIDTH", str(width)))["result"]["value"]
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
    words += [
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-pipe",
    ]
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


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    with browser(tmp_path / "profile") as opened:
        yield opened
