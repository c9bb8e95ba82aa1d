"""Progress bars inside a Hugging Face Trainer: its own bar is told which phase runs, passes over all rows get one too."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import ProgressCallback


def name_bar(trainer: Any, name: str, steps: int) -> None:
    """Write a phase's name before the trainer's bar, and how many steps it ends at."""
    for callback in trainer.callback_handler.callbacks:
        bar: Any = getattr(callback, "training_bar", None)
        if hasattr(bar, "set_description"):
            bar.total = steps
            bar.set_description(name)


class PassBars:
    """A progress callback that shows passes over rows: where the trainer shows bars, under the same conditions.

    Steps of a training are shown by the trainer itself.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._name = ""
        self._bar: Any = None

    def __call__(self, name: str, done: int, of: int) -> None:
        """Take note of ``done`` rows of the pass ``name`` over ``of`` rows."""
        phase = self._trainer.phase
        if (phase is not None and name == phase.request.name) or not self._shown():
            return
        if self._bar is None or name != self._name:
            self.close()
            from tqdm.auto import tqdm

            self._name, self._bar = (
                name,
                tqdm(total=of, desc=name, unit="row", leave=False, dynamic_ncols=True),
            )
        self._bar.update(done - self._bar.n)
        if done >= of:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _shown(self) -> bool:
        bars = any(isinstance(c, ProgressCallback) for c in self._trainer.callback_handler.callbacks)
        return bars and bool(self._trainer.is_world_process_zero())
