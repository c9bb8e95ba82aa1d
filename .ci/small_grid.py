"""Does the small grid still say what it said? The folder of its cells is the argument; exits with 1 and the reasons if not.

The bars are far from what was measured: they find a defense that stopped working, not one that got a little worse.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

GUARDED = 0.5  # ASR that a defense which works on a plain trigger stays below; undefended it is near 1
CLEAN_FLAGGED = 0.15  # share of rows without poison that may be thrown out, or of clean inputs flagged


def main(folder: Path) -> int:
    """Say what is wrong and return the exit code."""
    cells = {
        path.stem.rsplit("--", 1)[0]: json.loads(path.read_text()) for path in folder.glob("*--seed*.json")
    }
    wrong = [f"{name}: {row['error']}" for name, row in cells.items() if "error" in row]

    def asr(defense: str) -> float:
        row: dict[str, Any] = cells.get(f"{defense}--badnets", {})
        success = row.get("attack_success_rate")
        return float("nan") if success is None else float(success["value"])

    if not asr("none") > 0.8:
        wrong.append(f"the trigger was not learned: ASR {asr('none'):.3f} without a defense")
    wrong += [
        f"{name} on badnets: ASR {asr(name):.3f}, at most {GUARDED} was wanted"
        for name in ("clean-only", "abl", "zscore")
        if not asr(name) <= GUARDED
    ]
    for name in ("abl", "zscore", "confidence", "strip"):
        detection = cells.get(f"{name}--clean", {}).get("detection") or {}
        flagged = detection.get("flagged_fpr", detection.get("clean_flag_rate", float("nan")))
        if not flagged <= CLEAN_FLAGGED:
            wrong.append(f"{name} without poison: {flagged:.3f} flagged, at most {CLEAN_FLAGGED} was wanted")
    sys.stdout.write(("\n".join(wrong) or f"{len(cells)} cells, as they were") + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
