"""Checkpoints of several processes: each keeps its own, and all go on at the newest that every one of them holds whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from asepsis.core.state_file import states
from asepsis.errors import BackendError, CheckpointError
from asepsis.training.shards import is_sharded
from asepsis.training.zero import uses_deepspeed

_MOST = 8  # checkpoints a process tells of; it keeps two


def count() -> int:
    """Return how many processes train together."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def first() -> bool:
    """Return whether this process is the first of those that train together, or alone."""
    return count() == 1 or distributed.get_rank() == 0


def check_alone(what: str, args: Any = None) -> None:
    """Raise ``BackendError`` where several processes would do what works on the files of one."""
    if max(count(), getattr(args, "world_size", 1)) > 1:
        raise BackendError(f"{what} works in one process: call it before or after the training of several")


def own_folder(folder: Path) -> Path:
    """Return where this process keeps its checkpoints: the folder itself where it is alone.

    Raises
    ------
    CheckpointError
        The folder holds checkpoints of a run of another number of processes.
    """
    processes = count()
    others = [part for part in part_folders(folder) if not part.name.endswith(f"-of-{processes}")]
    if any(states(part) for part in others) or (processes > 1 and states(folder)):
        raise CheckpointError(
            f"{folder} holds checkpoints of another number of processes than {processes}: resume with as many as there were, "
            "or delete the folder"
        )
    return folder if processes == 1 else folder / f"process-{distributed.get_rank()}-of-{processes}"


def part_folders(folder: Path) -> list[Path]:
    """Return the folders of single processes in a folder of checkpoints."""
    return sorted(folder.glob("process-*-of-*"))


def known_to_any(numbers: list[int]) -> list[int]:
    """Return the numbers that any process knows, the highest first."""
    if count() == 1:
        return sorted(numbers, reverse=True)
    newest = sorted(numbers, reverse=True)[:_MOST]
    told = torch.tensor(newest + [-1] * (_MOST - len(newest)), device=_device())
    gathered = [torch.empty_like(told) for _ in range(count())]
    distributed.all_gather(gathered, told)
    return sorted({int(n) for n in torch.cat(gathered) if n >= 0}, reverse=True)


def true_for_all(holds: bool) -> bool:  # noqa: FBT001 - one process's say
    """Return whether something holds in every process."""
    if count() == 1:
        return holds
    said = torch.tensor([int(holds)], device=_device())
    distributed.all_reduce(said, distributed.ReduceOp.MIN)
    return bool(said)


def check_resumable(model: nn.Module, args: Any) -> None:
    """Raise ``BackendError`` where a training's state is not all in what a checkpoint holds."""
    if getattr(args, "fp16", False):
        raise BackendError("checkpoints do not hold fp16's loss scale; use bf16 or float32")
    if uses_deepspeed(args):
        raise BackendError("checkpoints of a training under DeepSpeed are not supported; train without them")
    if is_sharded(model):
        raise BackendError("checkpoints of weights that are spread over processes are not supported yet")


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
