"""What the ABL benches share: a scan beside the answer key, as a line of a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import asepsis
from asepsis.data import Data
from asepsis.evaluation.metrics import auroc


def scan_beside_key(
    data: Data, key: np.ndarray, *, model: str, settings: asepsis.Settings, name: dict[str, Any], output: Path
) -> None:
    """Scan with ABL's defaults and add a line of what was flagged; ``name`` says which scan it was."""
    began = time.monotonic()
    scan = asepsis.scan_data(data, model=model, method="abl", settings=settings)
    caught, report = scan.flagged, scan.manifest["report"]
    line = {
        **name,
        "poisoned": int(key.sum()),
        "seed": settings.seed,
        "auroc": auroc(scan.suspicion, key) if key.any() else None,
        "flagged_poison": int((caught & key).sum()),
        "flagged_clean": int((caught & ~key).sum()),
        "seconds": round(time.monotonic() - began),
        "verdict": report["verdict"],
        "tried": report["tried"],
    }
    with output.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)
