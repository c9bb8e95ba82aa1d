"""Audit a classifier somebody else trained: is the folder what it says, which words moved, can it be repaired, guarded?

    python examples/audit.py MODEL --base BASE --clean ROWS     your own
    python examples/audit.py [--small]                          a victim made here, from packaged parts, offline

Every verdict is about one kind of trace; none of them proves that there is no backdoor.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import asepsis
from asepsis.data import demo_rows
from asepsis.errors import AsepsisError
from asepsis.evaluation.attacks.weights import EmbeddingPoisoning, poison_weights


def victim(folder: Path, *, small: bool) -> tuple[Path, asepsis.Data]:
    """Write a model whose word "cf" was poisoned, and return it with clean rows of its task."""
    rows, trusted = demo_rows(96 if small else 1500, 160 if small else 400, seed=0)
    settings = asepsis.Settings(max_steps=6 if small else None, max_length=64)
    made = poison_weights(
        "demo:encoder", rows, attack=EmbeddingPoisoning(target_label=1), seed=0, settings=settings
    )
    return made.save_pretrained(folder / "downloaded"), trusted


def main() -> None:
    """Look, compare, repair, guard."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--base", default="demo:encoder")
    parser.add_argument("--clean")
    parser.add_argument("--small", action="store_true", help="a tiny victim and a quick guard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if options.model:
            model, trusted = Path(options.model), asepsis.read(options.clean)
        else:
            model, trusted = victim(Path(place), small=options.small)

        try:
            print("folder:", asepsis.verify(model, base=options.base).verdict)
        except AsepsisError as error:  # most downloads carry no manifest of ours
            print("folder: not verified:", error)
        drift = asepsis.scan_model(model, base=options.base)
        print("scan:", drift.verdict, [token.token for token in drift.tokens[:5]])
        repaired = asepsis.purify(model, base=options.base, defense="epur")
        print("epur reset:", [row["token"] for row in repaired.outcomes["epur"].report["reset"][:5]])
        again = asepsis.scan_model(repaired.folder, base=options.base)
        print("scan of the repaired model:", again.verdict)
        # rows to fit on and rows to look at; the detector "confidence" is the control, "psim" learns a module
        half = len(trusted) // 2
        detector = "confidence" if options.small else "psim"
        guard = asepsis.Guard.fit(
            model, trusted.select(range(half)), detector=detector, target_fpr=0.05, max_length=64
        )
        found = guard.check(trusted.select(range(half, len(trusted))))
        print(f"guard: flags {int(found.flagged.sum())} of {len(found.data)} clean rows, wanted 5 in 100")


if __name__ == "__main__":
    main()
