"""What a defense may ask of its driver, and what it hands back.

A defense is a generator: it yields requests and is sent the answers. It owns no optimizer loop and no device, so one
script serves every driver.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from asepsis.core.alignment import Alignment
from asepsis.core.losses import LossRule
from asepsis.core.outcome import Acted as Acted
from asepsis.core.outcome import Ids as Ids
from asepsis.core.outcome import Outcome as Outcome
from asepsis.core.quality import Quality
from asepsis.core.weights import Vocabulary
from asepsis.data import Data
from asepsis.errors import ConfigError

#: What a training runs: the model, or its embedding block with the mean over tokens and a new linear head on top.
#: The mean leaves padding out, or, as one paper's code has it, takes every row as padded to the full length.
Network = Literal["full", "pooled", "pooled over padding"]
#: Which of its weights learn: those that are trainable, or word embeddings alone (and the new head of a pooled network).
Trainable = Literal["all", "embeddings"]


@dataclass(frozen=True, kw_only=True)
class Remember:
    """Ask for the trainable weights to be kept. Answer: a :class:`Weights` token that ``Train(start=...)`` takes."""


@dataclass(frozen=True)
class Weights:
    """Names remembered weights; the driver holds the tensors."""

    key: int


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Ask for remembered weights to be put back. Answer: None."""

    weights: Weights


@dataclass(frozen=True, kw_only=True)
class Forget:
    """Say that remembered weights are not wanted any more. Answer: None."""

    weights: Weights


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """Ask for the whole checkpoint to be written anew; the model then stands there. Answer: what ``edit`` returns.

    Only :func:`asepsis.purify` carries it out: a training has no checkpoint.

    Attributes
    ----------
    name : str
        Shown in progress and logs.
    edit : callable
        Given an empty folder, writes a checkpoint of the same model into it.
    """

    name: str
    edit: Callable[[Path], Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Mark a point of the script. Answer: None.

    Where the caller wants stages, the weights of this point are kept, see :meth:`asepsis.Run.stage`; otherwise it
    costs nothing.
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class Touch:
    """Ask for the weights to be read, changed or both by the script itself. Answer: what ``do`` returns.

    A killed run is resumed by running its script again with the answers it was given, on weights that are not yet where
    they were. So what hangs on trained weights, or changes weights, is asked for: it is then not done twice.

    Attributes
    ----------
    name : str
        Shown in logs.
    do : callable
        Returns None, numbers, words, arrays or tensors, and lists, tuples or dicts of these.
    """

    name: str
    do: Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Ask for rows as token ids, cut as they are for training. Answer: :class:`Encoded`.

    Attributes
    ----------
    data : Data or None
        Other rows than the run's.
    part : {"inputs", "responses"}
        What a classifier reads or a causal LM is prompted with; or what a causal LM is to say.
    """

    data: Data | None = None
    part: Literal["inputs", "responses"] = "inputs"


@dataclass(frozen=True)
class Encoded:
    """Token ids of rows: those of row ``i`` are ``ids[starts[i] : starts[i + 1]]``; [T] int64, [N + 1] int64."""

    ids: Ids
    starts: Ids

    @property
    def row_of(self) -> Ids:
        """Row of each token [T]."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True, kw_only=True)
class Spell:
    """Ask what each token id is called and which are not ordinary tokens. Answer: :class:`Spelled`."""


@dataclass(frozen=True)
class Spelled:
    """The run's vocabulary, and the id that stands for padding and for nothing else (None where there is none)."""

    vocabulary: Vocabulary
    padding: int | None


@dataclass(frozen=True, kw_only=True)
class Score:
    """Ask for rows' losses from an evaluation pass (dropout off, fp32). Answer: :class:`Losses`.

    Attributes
    ----------
    name : str
        Shown in progress and logs.
    rows : ids or None
        Rows to score; None means all. The others get NaN and count 0.
    relabel : Relabel or None
        Score these answers instead of the rows' own (classifiers only).
    data : Data or None
        Other rows than the run's; ``rows`` are then ids of these.
    network : Module or None
        What scores them instead of the model.
    """

    name: str = "score"
    rows: Ids | None = None
    relabel: Relabel | None = None
    data: Data | None = None
    network: nn.Module | None = None


@dataclass(frozen=True, kw_only=True)
class Continue:
    """Ask how a causal LM goes on after prompts: greedily, or by given words. Answer: :class:`Continued`.

    Attributes
    ----------
    tokens, words : int, tuple of str
        How many tokens (a row that ends earlier has fewer), or which responses to judge instead, each with its end token.
    name, rows, data, network
        As for :class:`Score`.
    """

    name: str
    tokens: int = 0
    words: tuple[str, ...] = ()
    rows: Ids | None = None
    data: Data | None = None
    network: nn.Module | None = None


@dataclass(frozen=True)
class Continued:
    """Log-probability of tokens taken, float32 [N, tokens], NaN after a row's end; of words [N, C], the mean of their tokens."""

    log_probability: NDArray[np.float32]


@dataclass(frozen=True)
class Relabel:
    """Other labels for some rows, for an auxiliary training. Classifiers only."""

    sample_ids: Ids
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Losses:
    """Per-sample losses in row order.

    Attributes
    ----------
    total : ndarray float32 [N]
        Nats, over the targets of a row.
    count : ndarray int64 [N]
        Targets: 1 for a classifier, response tokens for a causal LM.
    correct : ndarray of bool [N] or None
        Whether a classifier predicts the row's class; False for rows not scored.
    logits : ndarray float32 [N, C] or None
        Of a classifier; NaN for rows not scored.
    """

    total: NDArray[np.float32]
    count: NDArray[np.int64]
    correct: NDArray[np.bool_] | None = None
    logits: NDArray[np.float32] | None = None

    @property
    def mean(self) -> NDArray[np.float32]:
        """Loss per response token [N]; NaN where a row has none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            per_target = self.total / np.where(self.count > 0, self.count, np.nan)
        return np.asarray(per_target, np.float32)


class Records(Protocol):
    """Where snapshots of a training go: one evaluation pass per snapshot."""

    def snapshot(self, step: int, losses: Losses) -> None:
        """Record one evaluation pass taken after ``step`` optimizer steps."""


Verdict = Literal["go on", "keep", "take", "back"]


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Look at what is being trained every few steps, and decide when it is enough.

    Attributes
    ----------
    every : int
        Optimizer steps between two looks; the first is after that many, and there is one after the last step.
    look : callable
        Given the step, a script that asks with :class:`Score` and :class:`Continue`, and returns what to do: go on, keep
        the trainable weights as they stand and go on, take them and stop, or stop and go back to those kept last.
    """

    every: int
    look: Callable[[int], Generator[Score | Continue, Any, Verdict]]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Ask for training. Answer: :class:`Trained`. Optimizer state is always fresh.

    Attributes
    ----------
    name : str
        Shown in progress and logs.
    rows : ids or None
        Sample ids to train on; None means all.
    isolated : ids or None
        Rows put into each batch beside the ordinary ones, half and half, marked as isolated for the loss rule.
    loss : LossRule
        How per-sample losses become the step's gradient.
    epochs, steps : float, int
        Length; exactly one is given. ``None`` for both means the user's own number of epochs.
    learning_rate : float or None
        Instead of the user's.
    learning_rate_scale : float
        Factor on it.
    decay_steps : int or None
        Steps over which the learning rate decays linearly to zero; None means the length of this training, 0 means
        a constant rate.
    start : Weights or None
        Weights to begin from; None means where the model stands.
    snapshots : tuple of int
        Steps after which an evaluation pass over all rows goes to ``records``; 0 is before the first step.
    records : Records or None
        Receiver of the snapshots.
    stop_above : float or None
        Stop when the running mean of the isolated rows' loss exceeds this.
    relabel : Relabel or None
        Other labels for some rows, in this training only.
    alignment : Alignment or None
        Align each step's gradient with that of clean reference rows.
    warmup : float
        Share of the decay over which the learning rate rises to its peak first.
    validation : ids or None
        Rows scored before the first step and after every epoch. The weights of the best epoch are kept; those before
        the first step are no candidate.
    data : Data or None
        Train on another data set than the run's; ``rows`` and ``isolated`` are then ids of that one.
    network : {"full", "pooled", "pooled over padding"} or Module
        What runs. A pooled network is thrown away afterwards; the embeddings it trained are the model's. A network of the
        script's own stays the script's; what is trainable of it learns.
    trainable : {"all", "embeddings"}
        Which weights learn. Word embeddings learn even where the model has them frozen.
    weight_decay : float or None
        Instead of the user's. With 0 only data moves an embedding.
    drop_tokens : ids or None
        Token ids left out of every input, after truncation; responses keep theirs.
    checks : Checks or None
        A stop rule of the script's own.
    """

    name: str
    rows: Ids | None = None
    isolated: Ids | None = None
    loss: LossRule = field(default_factory=LossRule)
    epochs: float | None = None
    steps: int | None = None
    learning_rate: float | None = None
    learning_rate_scale: float = 1.0
    decay_steps: int | None = None
    start: Weights | None = None
    snapshots: tuple[int, ...] = ()
    records: Records | None = None
    stop_above: float | None = None
    relabel: Relabel | None = None
    alignment: Alignment | None = None
    warmup: float = 0.0
    validation: Ids | None = None
    data: Data | None = None
    network: Network | nn.Module = "full"
    trainable: Trainable = "all"
    weight_decay: float | None = None
    drop_tokens: Ids | None = None
    checks: Checks | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(f"{self.name}: give epochs or steps, not both")
        if bool(self.snapshots) != (self.records is not None):
            raise ConfigError(f"{self.name}: snapshots and records go together")
        if self.rows is not None and len(self.rows) == 0:
            raise ConfigError(f"{self.name}: no rows to train on")
        if self.validation is not None and len(self.validation) == 0:
            raise ConfigError(f"{self.name}: no rows to validate on")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"{self.name}: warmup must lie in [0, 1), got {self.warmup!r}")
        if self.warmup and self.decay_steps == 0:
            raise ConfigError(f"{self.name}: warmup is a share of the decay, and there is none")
        if self.validation is not None and self.checks is not None:
            raise ConfigError(f"{self.name}: validation and checks both choose weights; give one")
        if (self.network, self.trainable) != ("full", "all") and (self.alignment or self.snapshots):
            raise ConfigError(
                f"{self.name}: only trainings of the whole model are aligned or scored on the way"
            )


@dataclass(frozen=True)
class Trained:
    """What happened.

    Attributes
    ----------
    steps : int
        Optimizer steps done.
    loss, isolated_loss : float, float or None
        Mean of the last steps (nats).
    stopped_early : bool
    alignment : dict or None
        How gradients were aligned.
    validated : tuple of Quality
        Before the first step, then after each epoch.
    kept_epoch : int or None
        The epoch whose weights were kept, from 1.
    """

    steps: int
    loss: float
    isolated_loss: float | None
    stopped_early: bool
    alignment: dict[str, Any] | None = None
    validated: tuple[Quality, ...] = ()
    kept_epoch: int | None = None


Request = Remember | Restore | Forget | Rewrite | Stage | Touch | Encode | Spell | Score | Continue | Train
Answer = Weights | Encoded | Spelled | Losses | Continued | Trained | Any


Script = Generator[Request, Any, Outcome]
