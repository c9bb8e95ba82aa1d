"""Sound things to damage, and doors that watch what happens behind them."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tqdm
from tqdm.std import TqdmDefaultWriteLock

# A child killed while it draws a bar would keep the lock that processes share, and whatever draws one here afterwards
# waits for ever; and a thread that watches the bars may hold the other lock when a child is born.
TqdmDefaultWriteLock.mp_lock = None
tqdm.tqdm.monitor_interval = 0

sys.path.insert(0, str(Path(__file__).parent))  # the corpus is a package beside its tests

if sys.platform == "win32":  # pipes, links and limits as Unix has them
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny classifier, an adapter of it, a guard, a ledger and rows, all sound."""
    import numpy as np
    import torch
    from hostile import grids
    from peft import LoraConfig, get_peft_model

    from asepsis import Guard
    from asepsis.core.ledger import LossLedger
    from asepsis.testing import tiny_classifier, tiny_rows

    root = tmp_path_factory.mktemp("sound")
    for name, noise in (("base", 0.0), ("model", 0.01)):
        network, tokenizer = tiny_classifier(0)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in network.parameters():
                weight += noise * torch.randn_like(weight)
        network.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = tiny_rows(60, 0)
    lines = [json.dumps({"text": t, "label": int(n)}) for t, n in zip(rows.texts, rows.labels, strict=True)]
    (root / "rows.jsonl").write_text("\n".join(lines) + "\n")
    words = tokenizer.get_vocab()
    (root / "counts.json").write_text(json.dumps({word: 1000 / (1 + at) for word, at in words.items()}))
    network, tokenizer = tiny_classifier(0)
    network.config._name_or_path = network.name_or_path = str(root / "base")
    torch.manual_seed(0)
    adapted: Any = get_peft_model(
        network, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    )
    adapted.peft_config["default"].base_model_name_or_path = str(root / "base")
    adapted.save_pretrained(root / "adapter")
    tokenizer.save_pretrained(root / "adapter")
    guard = Guard.fit(str(root / "model"), root / "rows.jsonl", detector="confidence", target_fpr=0.2)
    guard.save_pretrained(root / "guard")
    grids.sound(root / "grid")
    (root / "ledgers").mkdir()
    ledger = LossLedger(8)
    ledger.observe(np.arange(8), np.arange(8, dtype=np.float32))
    ledger.end_epoch()
    ledger.save(root / "ledgers" / "ledger.safetensors")
    return root


@pytest.fixture
def copied(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Copy one of the sound folders to where it may be damaged; the test runs beside the copy."""
    monkeypatch.chdir(tmp_path)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(sound / name, tmp_path / name))

    return copy


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Deny every connection, with the hub's own offline switch off; return the addresses that were asked for."""
    import huggingface_hub.constants as hub

    asked: list[Any] = []

    def refuse(self: Any, address: Any) -> None:
        asked.append(address)
        raise OSError("a test denies the network")

    def lookup(host: Any, *_: Any, **__: Any) -> None:
        asked.append(host)
        raise socket.gaierror("a test denies the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    return asked


@pytest.fixture
def bounded() -> Iterator[None]:
    """Leave the process a gigabyte and a half more address space than it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 29), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
