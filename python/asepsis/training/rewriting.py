"""Run scripts that repair a finished model: checkpoints are rewritten on disk, and loaded only to train or score."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asepsis.core.phases import Answer, Outcome, Request, Rewrite, Script
from asepsis.core.weights import Checkpoint, copy_checkpoint_except
from asepsis.training.driver import Driver, Progress, checked, silent

log = logging.getLogger("asepsis")

_SAVED_IN = {"BF16": torch.bfloat16, "F16": torch.float16}


class CheckpointDriver:
    """Answers the requests of repairing scripts, one after the other, each where the last one ended.

    Parameters
    ----------
    victim : Checkpoint
        The model as it was handed over. It is only read.
    make : callable
        Given the folder of a checkpoint, returns a driver with the model loaded from there.
    scratch : Path
        Folder for what is written on the way: at most two checkpoints at a time beside the victim.
    progress : callable
        As for :func:`asepsis.defend`.
    """

    def __init__(
        self,
        victim: Checkpoint,
        make: Callable[[Path], Driver],
        scratch: Path,
        *,
        progress: Progress = silent,
    ) -> None:
        self.checkpoint = victim
        self.requests = 0
        self._victim = victim
        self._make = make
        self._scratch = scratch
        self._progress = progress
        self._inner: Driver | None = None
        self._stands_at = victim.folder  # the checkpoint the weights in memory came from
        self._trained = False
        self._fresh = (scratch / f"checkpoint-{i}" for i in itertools.count())

    @property
    def steps_done(self) -> int:
        """Optimizer steps of all scripts."""
        return 0 if self._inner is None else self._inner.steps_done

    def run(self, script: Callable[[Checkpoint], Script]) -> Outcome:
        """Drive one script, which begins at the checkpoint of the one before, and write down where it ends."""
        running = script(self.checkpoint)
        answer: Answer = None
        while True:
            try:
                request = running.send(answer)
            except StopIteration as stop:
                outcome = checked(stop.value)
                break
            answer = self.answer(request)
            self.requests += 1
        self._settle()
        return outcome

    def answer(self, request: Request) -> Answer:
        """Carry out one request."""
        if isinstance(request, Rewrite):
            return self._rewrite(request)
        driver = self._driver()
        driver.requests = self.requests  # the seed of each request hangs on its number
        before = driver.steps_done
        answer = driver.answer(request)
        self._trained = self._trained or driver.steps_done > before
        return answer

    def _rewrite(self, request: Rewrite) -> Any:
        log.info("phase %d: %s", self.requests, request.name)
        folder = next(self._fresh)
        folder.mkdir()
        answer = request.edit(folder)
        self._drop(self._stands_at)
        self._stands_at, self._trained = folder, False
        if self._inner is not None:
            self._load(self._inner.model, folder)
        self._progress(request.name, 1, 1)
        return answer

    def _settle(self) -> None:
        """Make where the model stands the checkpoint that the next script begins at."""
        before = self.checkpoint.folder
        if self._trained:
            folder = next(self._fresh)
            folder.mkdir()
            self._save(folder)
            self._drop(self._stands_at)
            self._stands_at, self._trained = folder, False
        if self._stands_at != before:
            self.checkpoint = Checkpoint.open(self._stands_at)
            self._drop(before)

    def _save(self, folder: Path) -> None:
        """Write the trained model as the victim is stored: same dtype, same files beside the weights."""
        model: Any = self._driver().model
        words = self._victim.tensors[self._victim.input_embeddings]
        model.to(_SAVED_IN.get(words.dtype, torch.float32))
        model.save_pretrained(folder)
        model.to(torch.float32)
        copy_checkpoint_except(
            self._victim.folder, folder, leave=("config.json", "asepsis.json", "asepsis_rows.jsonl")
        )

    def _driver(self) -> Driver:
        if self._inner is None:
            self._inner = self._make(self._stands_at)
        return self._inner

    def _load(self, model: nn.Module, folder: Path) -> None:
        """Bring weights into a model that is in memory already, by the way transformers reads them."""
        source = self._make(folder).model
        with torch.no_grad():
            for pairs in ("named_parameters", "named_buffers"):
                values = dict(getattr(source, pairs)())
                for name, target in getattr(model, pairs)():
                    target.copy_(values[name])

    def _drop(self, folder: Path) -> None:
        """Remove a checkpoint written on the way that nothing stands on any more; the victim's is the user's."""
        if folder.parent == self._scratch and folder != self.checkpoint.folder:
            shutil.rmtree(folder)
