"""Write a finished run: a stock checkpoint or adapter, the flagged rows and the manifest, all or nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asepsis.core.evidence import write_evidence
from asepsis.core.export import save_adapter
from asepsis.core.export_rows import save_adapter_with_rows
from asepsis.core.folders import to_disk, whole_folder
from asepsis.core.judged import write_judged
from asepsis.core.lora import layers
from asepsis.core.manifest import ROWS, check_writable, write_manifest
from asepsis.core.phases import Ids, Outcome
from asepsis.data import Data
from asepsis.training.processes import first
from asepsis.training.shards import gathered, is_sharded


def save_run(
    folder: str | Path,
    model: nn.Module,
    tokenizer: Any,
    manifest: dict[str, Any],
    outcome: Outcome,
    data: Data,
) -> Path:
    """Save everything into a new folder, which appears whole or not at all.

    Of several processes the first writes, as transformers does: two that took each other's place would leave the files of
    the last, without weights.

    Parameters
    ----------
    folder : path
        Must not exist, or be empty, or hold an earlier run, which is replaced.
    model : Module
        Where its weights are spread over processes, every process has to call this. Where each holds them whole, those
        that do not write return at once, without waiting for the folder.

    Returns
    -------
    Path
        The folder. It loads with transformers (or peft) alone.
    """
    target = Path(folder)
    if not is_sharded(model) and not first():
        return target
    check_writable(target)
    with _one_of_all(model, target) as scratch:
        save_model(model, tokenizer, scratch, data, outcome.edited)
        tokenizer.save_pretrained(scratch)
        write_judged(
            scratch / ROWS,
            data,
            suspicion=outcome.suspicion,
            flagged=np.isin(data.sample_ids, outcome.flagged),
            isolated=np.isin(data.sample_ids, outcome.isolated),
        )
        write_evidence(scratch, outcome.evidence)
        write_manifest(scratch, manifest)
    return target


@contextlib.contextmanager
def _one_of_all(model: nn.Module, target: Path) -> Iterator[Path]:
    """Yield a folder to fill that becomes ``target``: of one process, where all have to take part in gathering weights."""
    with whole_folder(target) if first() else _thrown_away() as scratch:
        yield scratch
    if is_sharded(model):
        torch.distributed.barrier()


@contextlib.contextmanager
def _thrown_away() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="asepsis-") as folder:
        yield Path(folder)


def save_model(model: nn.Module, tokenizer: Any, folder: Path, data: Data, edited: Ids) -> None:
    """Write weights: a stock adapter, checked against peft, where not everything is in what transformers writes."""
    multiscale = any(True for _ in layers(model))
    if multiscale and is_sharded(model):
        whole = gathered(model)
        if whole is None:
            return
        model = whole
    saver: Any = model
    if not multiscale and not (hasattr(model, "peft_config") and len(edited)):
        saver.save_pretrained(folder)
        return
    probe = tokenizer(
        list(data.texts[:4]), return_tensors="pt", padding=True, truncation=True, max_length=64
    ).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        if multiscale:
            save_adapter(model, folder, logits=lambda: saver(**probe).logits)
        else:
            save_adapter_with_rows(model, folder, edited, logits=lambda: saver(**probe).logits)
    finally:
        model.train(was_training)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_text(text, encoding="utf-8")
        to_disk(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """Return the versions of asepsis and of the packages a result depends on."""
    found = {}
    for name in ("asepsis", "torch", "transformers", "peft", "accelerate", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
