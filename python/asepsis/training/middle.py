"""The state of a training in its middle: written to checkpoints, and taken up from one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from asepsis.core.phases import Train
from asepsis.training.align import Aligner
from asepsis.training.driver import Driver
from asepsis.training.resume import optimizer_state, put_optimizer_state

if TYPE_CHECKING:
    from asepsis.training.loop import Watch

log = logging.getLogger("asepsis")


class Middle:
    """Of one training that runs: optimizer, schedule, watch, aligner and what is trained beside the model."""

    def __init__(
        self,
        driver: Driver,
        request: Train,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        watch: Watch,
        aligner: Aligner | None,
        schedule: Any = None,
    ) -> None:
        self.driver, self.request = driver, request
        self.optimizer, self.schedule = optimizer, schedule
        self.watch, self.aligner = watch, aligner
        of_model = set(driver.model.parameters())
        #: of a network that is thrown away afterwards; the others are the model's
        self.own = {name: p for name, p in network.named_parameters() if p not in of_model}

    def take_up(self) -> bool:
        """Put back what a checkpoint in the middle of this training holds; False where there is none."""
        driver = self.driver
        found = driver.take_resumed()
        if found is None or driver.journal is None:
            return False
        driver.journal.take_up(self.request)
        self.watch.put_state(found["watch"], driver.device)
        put_optimizer_state(self.optimizer, found["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(found["schedule"])
        with torch.no_grad():
            for name, parameter in self.own.items():
                parameter.copy_(found["network"][name])
        if self.aligner is not None:
            self.aligner.put_state(found["aligner"])
        log.info("resume: %s goes on after step %d", self.request.name, self.watch.steps)
        return True

    def save_if_due(self) -> None:
        """Write a checkpoint when it is time."""
        journal = self.driver.journal
        if journal is None or not journal.due or self.watch.steps == self.watch.last:
            return  # after the last step there is an answer at once
        running = {
            "watch": self.watch.state(),
            "optimizer": optimizer_state(self.optimizer),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "network": self.own,
            "aligner": None if self.aligner is None else self.aligner.state(),
        }
        journal.save(self.driver.state(), running)
