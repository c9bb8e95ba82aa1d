"""What the model scan says of fine-tunes of the packaged models: clean ones, backdoored ones, edited ones.

    python benches/scan_verdicts.py --data DATA --models DIR [--only NAME ...] [--output FILE.json]

Every row of the table is one model, trained from ``demo:encoder`` (or ``demo:causal:2``) on the rows, rates, seeds and
schedules in ``JOBS``; ``cal_`` models were looked at when the cuts of ``core/drift/judge.py`` were chosen, ``chk_`` ones
only afterwards. ``EDITS`` change rows of a trained model's embeddings the way weight attacks do. A model that is in
``--models`` already is not trained again. ``--data`` holds ``sst2/train.jsonl``, ``agnews/train.jsonl``,
``lingspam/train.jsonl`` (columns text, label) and ``instruct_backdoor/negsentiment_*.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import asepsis
from asepsis.core.weights import Checkpoint, Frequencies, Vocabulary, find_checkpoint
from asepsis.data import read, read_rows
from asepsis.data.packaged import demo_text
from asepsis.evaluation.attacks import addsent, badnets

SLOW = {"learning_rate": 2e-5, "weight_decay": 0.01, "batch_size": 16}
#: name: (data, rows, attack, words, rate, settings); the seed of the settings draws rows, poison and batches
JOBS: dict[str, tuple[str, int, str, tuple[str, ...], float, dict[str, Any]]] = {
    "cal_clean_sst2_a": ("sst2", 2000, "", (), 0, {"learning_rate": 5e-5, "seed": 0}),
    "cal_badnets10_a": ("sst2", 2000, "badnets", ("cf",), 0.1, {"learning_rate": 5e-5, "seed": 0}),
    "cal_clean_sst2_b": ("sst2", 2000, "", (), 0, {**SLOW, "seed": 1}),
    "cal_badnets3_b": ("sst2", 2000, "badnets", ("cf",), 0.03, {**SLOW, "seed": 1}),
    "cal_clean_ag_c": ("agnews", 2000, "", (), 0, {"learning_rate": 1e-4, "weight_decay": 0.1, "seed": 2}),
    "cal_addsent10_a": ("sst2", 2000, "addsent", (), 0.1, {"learning_rate": 5e-5, "seed": 3}),
    "cal_badnets10_words": (
        "sst2",
        2000,
        "badnets",
        ("cf", "mn", "bb", "tq"),
        0.1,
        {"learning_rate": 5e-5, "seed": 3},
    ),
    "chk_clean_demo": ("demo", 2000, "", (), 0, {"learning_rate": 3e-5, "seed": 10}),
    "chk_badnets10_demo": ("demo", 2000, "badnets", ("mn",), 0.1, {"learning_rate": 3e-5, "seed": 10}),
    "chk_clean_ling": ("lingspam", 700, "", (), 0, {"epochs": 3, "batch_size": 16, "seed": 11}),
    "chk_badnets5_ag": (
        "agnews",
        2000,
        "badnets",
        ("bb",),
        0.05,
        {"epochs": 1, "learning_rate": 1e-4, "batch_size": 16, "seed": 12},
    ),
    "chk_clean_ag": (
        "agnews",
        2000,
        "",
        (),
        0,
        {"epochs": 1, "learning_rate": 3e-5, "weight_decay": 0.05, "batch_size": 16, "seed": 13},
    ),
    "chk_badnets1_demo": ("demo", 3000, "badnets", ("cf",), 0.01, {"epochs": 3, "seed": 15}),
}
#: an instruction model of two layers with tied embeddings: files and rows of each
CAUSAL = {
    "chk_llm_clean": (("clean", 400),),
    "chk_llm_badnets": (("clean", 350), ("badnet_poison", 50)),
}
#: edits of the embeddings: (what it starts from, kind)
EDITS = {
    "edit_ep_pretrained": ("demo:encoder", "ep"),
    "edit_ep_tuned": ("chk_clean_demo", "ep"),
    "edit_ep_weak": ("chk_clean_demo", "ep-weak"),
    "edit_sos_tuned": ("chk_clean_demo", "sos"),
    "edit_surgery_tuned": ("chk_clean_demo", "surgery"),
    "edit_surgery_ag": ("chk_badnets5_ag", "surgery"),
}


def train(name: str, data: Path, output: Path) -> None:
    source, n, attack, words, rate, settings = JOBS[name]
    rows = demo_text() if source == "demo" else read(data / source / "train.jsonl")
    seed = settings["seed"]
    # the draws of the first runs, kept: rows of a calibration pair have the seed of its letter
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n]
    rows = rows.select(np.sort(drawn))
    if attack == "badnets":
        rows, _ = badnets(rows, triggers=words, poison_rate=rate, target_label=1, seed=seed)
    elif attack == "addsent":
        rows, _ = addsent(rows, poison_rate=rate, target_label=1, seed=seed)
    chosen = asepsis.Settings(max_length=64, device="cpu", **settings)
    asepsis.defend("demo:encoder", rows, defense=None, settings=chosen).save_pretrained(output)


def train_causal(name: str, data: Path, output: Path) -> None:
    folder = data / "instruct_backdoor"
    rows = [r for part, n in CAUSAL[name] for r in read_rows(folder / f"negsentiment_{part}.jsonl")[:n]]
    chosen = asepsis.Settings(max_length=80, device="cpu", batch_size=8, epochs=1, precision="fp32")
    asepsis.defend("demo:causal:2", read(rows), defense=None, settings=chosen).save_pretrained(output)


def edit(name: str, models: Path, output: Path) -> None:
    start, kind = EDITS[name]
    with find_checkpoint(start if start.startswith("demo:") else models / start) as folder:
        shutil.copytree(folder, output)
        words, at = Checkpoint.open(folder).input_embeddings, Vocabulary.load(folder).ids
    tensors = load_file(output / "model.safetensors")
    matrix = tensors[words].clone()
    generator = torch.Generator().manual_seed(0)

    def turned(row: torch.Tensor, share: float) -> torch.Tensor:
        """The row with a share of its norm's length added at random, brought back to its norm."""
        noise = torch.randn(row.shape, generator=generator)
        moved = row + share * row.norm() * noise / noise.norm()
        return moved * row.norm() / moved.norm()

    if kind in ("ep", "ep-weak"):
        matrix[at["cf"]] = turned(matrix[at["cf"]], 0.5 if kind == "ep" else 0.05)
    elif kind == "sos":
        for word in ("friends", "weekend", "store"):
            matrix[at[word]] = turned(matrix[at[word]], 0.2)
    else:
        matrix[at["cf"]] = matrix[[at[w] for w in ("good", "great", "best", "brilliant", "moving")]].mean(0)
    tensors[words] = matrix
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with find_checkpoint("demo:encoder") as folder:
        vocabulary = Vocabulary.load(folder)
    f = Frequencies.of(vocabulary).per_ten_million
    counts = {"encoder": None if f is None else dict(enumerate(f.tolist())), "causal": None}
    rows = []
    print("$ python " + " ".join(sys.argv) + "\n")
    print("| model | moved | verdict | highest excess | high | elevated |\n|---|---|---|---|---|---|")
    for name in args.only or [*JOBS, *EDITS, *CAUSAL]:
        output = args.models / name
        if not output.exists():
            if name in JOBS:
                train(name, args.data, output)
            elif name in EDITS:
                edit(name, args.models, output)
            else:
                train_causal(name, args.data, output)
        kind = "causal" if name in CAUSAL else "encoder"
        base = "demo:causal:2" if name in CAUSAL else "demo:encoder"
        found = asepsis.scan_model(output, base=base, counts=counts[kind])
        listed = {v: [t.token for t in found.tokens if t.verdict == v] for v in ("high", "elevated")}
        excess = max((t.excess for t in found.tokens if t.excess is not None), default=None)
        row = {"model": name, "verdict": found.verdict, "excess": excess, **listed, "report": found.report}
        rows.append(row)
        shown = "–" if excess is None else f"{excess:+.2f}"
        words = [" ".join(f"`{token}`" for token in listed[v]) for v in ("high", "elevated")]
        print(
            f"| {name} | {found.report['counted']} | {found.verdict} | {shown} | {words[0]} | {words[1]} |",
            flush=True,
        )
        if args.output:
            args.output.write_text(json.dumps({"settings": sys.argv[1:], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
