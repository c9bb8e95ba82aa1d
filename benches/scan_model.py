"""Scanning two large bfloat16 embedding matrices against merely reading their files, and the memory it takes.

    python benches/scan_model.py [--rows 128256] [--columns 4096] [--repeats 3] [--threads 1] [--folder DIR]
        [--output FILE.json]

Two checkpoints of one embedding matrix and a small tensor are written under ``--folder`` and deleted at the end: 2.1 GB
by default. ``read`` reads both into one buffer, ``row_stats`` is the kernel alone, ``scan`` is ``asepsis.scan_model``
with given counts, tokenizers and verdict included, ``scan, wordfreq`` with the word list. Times are the best of the
repeats, taken in turns: wall and processor time. ``anonymous MiB`` is the most memory the process held that is not
backed by a file, torch included; pages of the maps are the system's cache and can be dropped at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asepsis
from asepsis.core.weights import Checkpoint, SafetensorsWriter
from asepsis.kernels.row_stats import row_stats_files

WORDS = "model.embed_tokens.weight"
BLOCK = 1024


def write(folder: Path, rows: int, columns: int, *, trained: int) -> None:
    """A checkpoint whose first ``trained`` rows moved, and the last of these eight times as far."""
    folder.mkdir()
    config = {"architectures": ["LlamaForSequenceClassification"], "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"t{at}": at for at in range(rows)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    split = {"type": "WhitespaceSplit"}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model})
    )
    generator = torch.Generator().manual_seed(0)
    p = 0.02 * torch.randn(BLOCK, columns, generator=generator)
    e = torch.randn(BLOCK, columns, generator=generator)
    tensors = [(WORDS, "BF16", (rows, columns)), ("model.norm.weight", "BF16", (columns,))]
    with SafetensorsWriter(folder / "model.safetensors", tensors) as writer:
        words = writer.region(WORDS).reshape(rows, 2 * columns)
        for start in range(0, rows, BLOCK):
            at = torch.arange(start, min(start + BLOCK, rows))
            block = p[: len(at)].clone()
            size = 2e-3 * (4.0 + at) ** -0.125
            size[at == trained - 1] *= 8
            block += torch.where(at < trained, size, 0.0)[:, None] * e[: len(at)]
            words[start : start + len(at)] = block.to(torch.bfloat16).view(torch.uint8).numpy()
        writer.region("model.norm.weight")[:] = (
            torch.ones(columns, dtype=torch.bfloat16).view(torch.uint8).numpy()
        )


def read(files: list[Path]) -> None:
    buffer = bytearray(1 << 24)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class Anonymous:
    """The most anonymous memory of this process while the block runs, in MiB."""

    def __enter__(self) -> Anonymous:
        self.most = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.most = max(self.most, int(line.split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=128_256)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        base, tuned = Path(scratch) / "base", Path(scratch) / "tuned"
        write(base, args.rows, args.columns, trained=0)
        write(tuned, args.rows, args.columns, trained=args.rows // 4)
        files = [folder / "model.safetensors" for folder in (base, tuned)]
        counts = {f"t{at}": 1.0 + args.rows / (1 + at) for at in range(args.rows)}
        found: dict[str, Any] = {}

        def kernel() -> None:
            left, right = (Checkpoint.open(f).tensors[WORDS].matrix() for f in (base, tuned))
            row_stats_files(left, right, round_to="bfloat16")

        def scan(given: dict[str, float] | None) -> Callable[[], None]:
            def run() -> None:
                found["scan"] = asepsis.scan_model(tuned, base=base, counts=given)

            return run

        todo = {
            "read": lambda: read(files),
            "row_stats": kernel,
            "scan": scan(counts),
            "scan, wordfreq": scan(None),
        }
        best = {name: [float("inf"), float("inf"), 0.0] for name in todo}
        for _ in range(args.repeats):
            for name, work in todo.items():
                with Anonymous() as memory:
                    wall, spent = time.perf_counter(), time.process_time()
                    work()
                    wall, spent = time.perf_counter() - wall, time.process_time() - spent
                old = best[name]
                best[name] = [min(old[0], wall), min(old[1], spent), max(old[2], memory.most)]
        size = sum(file.stat().st_size for file in files)
        first = found["scan"].tokens[0]
        assert found["scan"].verdict == "suspicious" and first.id == args.rows // 4 - 1, first
    print("$ python " + " ".join(sys.argv))
    print(
        f"2 x {args.rows} x {args.columns} bfloat16, {size / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}, ",
        end="",
    )
    print(f"torch {torch.__version__}, numpy {np.__version__}\n")
    print("| what | wall s | processor s | GB/s (processor) | anonymous MiB |\n|---|---|---|---|---|")
    rows = []
    for name, (wall, spent, memory_mib) in best.items():
        rows.append({"case": name, "wall_s": wall, "processor_s": spent, "anonymous_mib": memory_mib})
        print(f"| {name} | {wall:.2f} | {spent:.2f} | {size / spent / 1e9:.1f} | {memory_mib:.0f} |")
    if args.output:
        args.output.write_text(json.dumps({"settings": sys.argv[1:], "bytes": size, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
