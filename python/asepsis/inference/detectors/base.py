"""What a detector is: a score of inputs, higher for those that look triggered. It knows no threshold and no policy.

A detector is fitted on clean rows, saved beside a guard and loaded again for the same model. The model is lent: in
evaluation mode, and handed back exactly as it was, without a hook, an adapter or a changed weight.
:func:`asepsis.core.views.shared_view` makes a model of one's own over the same weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.training.driver import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Self


class Detector(ABC):
    """Scores inputs of one model.

    Attributes
    ----------
    config_type : type
        Its settings, like those of a defense.
    least_rows : int
        Clean rows that :meth:`fit` learns from at least. 0 says that it learns from none: all rows then calibrate.
    """

    config_type: ClassVar[type[DefenseConfig]]
    least_rows: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """What :func:`asepsis.inference.detectors.load` finds it by."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    @abstractmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        clean: Data,
        *,
        config: Any = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Self:
        """Return a detector for ``model``.

        Parameters
        ----------
        model, tokenizer
            A transformers or peft model, as it will answer, and its tokenizer.
        clean : Data
            Trusted rows. None of them calibrates the threshold, unless ``least_rows`` is 0.
        config : ``config_type`` or None
            Settings; None for the defaults.
        seed : int
            Of everything drawn.
        max_length, batch_size : int
            Tokens kept of each row, here and later; rows per batch where no gradient is needed.
        progress : callable
            Called with ``(phase, done, of)``.
        """

    @abstractmethod
    def scores(self, data: Data) -> NDArray[np.float32]:
        """Return one finite score a row, float32 [N], higher for what looks triggered.

        Only what the model is asked is read (``texts``), never labels or responses. A row that cannot be scored raises.
        """

    @abstractmethod
    def cut(self, data: Data) -> NDArray[np.bool_]:
        """Return which rows are longer than what :meth:`scores` reads of them, bool [N]."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return, JSON-ready, what :meth:`load` needs beside the files of :meth:`save`."""

    def save(self, folder: Path) -> None:
        """Write what does not fit into :meth:`state` as safetensors or JSON; by default there is nothing."""
        del folder

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """Return a detector saved by :meth:`state` and :meth:`save`, for the model it was fitted on."""

    @classmethod
    def control(cls, config: Any) -> Any:
        """Return settings of the control, the model's own confidence, that ask what this detector asks; None for its defaults."""
        del config
        return None

    def own_threshold(self) -> float | None:
        """Return a threshold of the method's own, to be used instead of a calibrated one; None for none."""
        return None

    def report(self) -> dict[str, Any]:
        """Return JSON-ready diagnostics of the fit, for the guard's manifest."""
        return {}
