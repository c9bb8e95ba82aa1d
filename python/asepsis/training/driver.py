"""Run a defense's script: answer its requests. What the two drivers share; only training differs."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from asepsis.core.exposure import part_to_train, word_embeddings
from asepsis.core.phases import (
    Answer,
    Continue,
    Continued,
    Encode,
    Encoded,
    Forget,
    Ids,
    Losses,
    Outcome,
    Relabel,
    Remember,
    Request,
    Restore,
    Rewrite,
    Score,
    Script,
    Spell,
    Spelled,
    Stage,
    Touch,
    Train,
    Trained,
    Weights,
)
from asepsis.core.weights import Vocabulary
from asepsis.data import Data
from asepsis.errors import CheckpointError, ConfigError, DefenseInert
from asepsis.training.collate import Collator
from asepsis.training.decode import continue_rows, followed, judge_rows
from asepsis.training.forward import autocast, full_precision_head, losses_of
from asepsis.training.models import room
from asepsis.training.resume import Journal, set_rng_state
from asepsis.training.shards import local, settle

log = logging.getLogger("asepsis")
T = TypeVar("T")

Progress = Callable[[str, int, int], None]  # (phase name, done, of)


def silent(name: str, done: int, of: int) -> None:
    """Report nothing."""


class Driver(ABC):
    """Answers requests for one model and one data set.

    Parameters
    ----------
    model, tokenizer
        A transformers (or peft) model and its tokenizer.
    data : Data
        The rows of the run.
    keep_stages : bool
        Keep a copy of the weights at each :class:`~asepsis.core.phases.Stage` the script marks, in CPU memory.
    seed : int
        Every request draws from its own stream derived from this and the request's number, so that a request's
        result does not depend on how earlier ones consumed randomness.
    journal : Journal or None
        Where the run is written down, so that a killed one can go on.
    """

    device: torch.device
    dtype: torch.dtype

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        data: Data,
        *,
        seed: int,
        max_length: int,
        eval_batch_size: int,
        progress: Progress = silent,
        keep_stages: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.seed = seed
        self.max_length = room(model, max_length)
        self.eval_batch_size = eval_batch_size
        self.progress = progress
        self.requests = 0
        self.steps_done = 0
        self.stages: dict[str, dict[str, Tensor]] = {}
        self.keep_stages = keep_stages
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._remembered: dict[int, dict[str, Tensor]] = {}
        self.journal = journal
        self._resumed: dict[str, Any] | None = None  # the training to be taken up in its middle
        self._fresh: dict[str, int] = {}  # how often each tensor had been written to when the run began

    def run(self, script: Script) -> Outcome:
        """Drive a script to its outcome."""
        torch.manual_seed(derive_seed(self.seed))  # a script may draw new weights
        self._fresh = {name: tensor._version for name, tensor in tensors_of(self.model).items()}
        answer: Answer = None
        while True:
            try:
                request = script.send(answer)
            except StopIteration as stop:
                return checked(stop.value)
            answer = self.answer(request) if self.journal is None else self._journaled(self.journal, request)
            self.requests += not isinstance(request, Touch)  # the seeds of those after it do not hang on it

    def _journaled(self, journal: Journal, request: Request) -> Answer:
        """Answer a request from the journal, or carry it out and write it down."""
        if isinstance(request, Train) and (request.checks or isinstance(request.network, nn.Module)):
            raise CheckpointError(
                f"{request.name}: a training of the script's own network cannot be resumed; run without checkpoints"
            )
        found = journal.loaded()
        if found is not None:
            self._put_state(found["driver"])
            set_rng_state(found["rng"])
            self._resumed = found["running"]
        if not journal.replaying:
            answer = self.answer(request)
            journal.note(request, answer)
            if journal.due:
                journal.save(self.state())
            return answer
        answer = journal.feed(request)
        return self.answer(request) if isinstance(request, (Encode, Spell)) else answer

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the run itself: every tensor that is trained or was written to."""
        now = tensors_of(self.model)
        changed = {k: t for k, t in now.items() if t.requires_grad or self._fresh.get(k) != t._version}
        return {
            "weights": changed,
            "remembered": {str(key): weights for key, weights in self._remembered.items()},
            "stages": self.stages,
            "steps_done": self.steps_done,
        }

    @torch.no_grad()
    def _put_state(self, state: dict[str, Any]) -> None:
        now = tensors_of(self.model)
        if strangers := sorted(set(state["weights"]) - set(now)):
            raise CheckpointError(f"the model has no {strangers[0]}, which the checkpoint holds")
        for name, value in state["weights"].items():
            now[name].copy_(value)
        self._remembered = {int(key): weights for key, weights in state["remembered"].items()}
        self.stages, self.steps_done = state["stages"], state["steps_done"]

    def take_resumed(self) -> dict[str, Any] | None:
        """Return the state of the training to be taken up in its middle, once; None where there is none."""
        found, self._resumed = self._resumed, None
        return found

    def count_batch(self) -> None:
        """Take note of a batch that was trained on or scored."""
        if self.journal is not None:
            self.journal.tick()

    def answer(self, request: Request) -> Answer:
        """Carry out one request."""
        log.info("phase %d: %s", self.requests, getattr(request, "name", type(request).__name__.lower()))
        if isinstance(request, Remember):
            self._remembered[self.requests] = self.weights()
            return Weights(self.requests)
        if isinstance(request, Restore):
            self._restore(request.weights)
            return None
        if isinstance(request, Forget):
            self._remembered.pop(request.weights.key, None)
            return None
        if isinstance(request, Rewrite):
            raise ConfigError(f"{request.name}: a training has no checkpoint to rewrite; use asepsis.purify")
        if isinstance(request, Stage):
            if self.keep_stages:
                self.stages[request.name] = self.weights() | self.weights(word_embeddings(self.model))
            return None
        if isinstance(request, Touch):
            return request.do()
        if isinstance(request, Encode):
            return self.encode(request)
        if isinstance(request, Spell):
            return self.spell()
        if isinstance(request, Score):
            return self.score(request)
        if isinstance(request, Continue):
            return self.continue_(request)
        if request.start is not None and self._resumed is None:
            self._restore(request.start)
        trained = self.train(request)
        self.steps_done += trained.steps
        return trained

    def converse(self, script: Generator[Score | Continue, Any, T]) -> T:
        """Answer a script that only looks, and return what it returns."""
        answer: Any = None
        while True:
            try:
                request = script.send(answer)
            except StopIteration as stop:
                found: T = stop.value
                return found
            answer = self.score(request) if isinstance(request, Score) else self.continue_(request)

    @abstractmethod
    def train(self, request: Train) -> Trained:
        """Carry out a training request."""

    def weights(self, *wanted: nn.Parameter, network: nn.Module | None = None) -> dict[str, Tensor]:
        """Return copies in CPU memory of these parameters, or of all that are trainable, of the model or a network.

        Of weights that are spread over processes each keeps its own part.
        """
        return {
            name: local(p.detach()).to("cpu", copy=True)
            for name, p in (network or self.model).named_parameters()
            if (any(p is w for w in wanted) if wanted else p.requires_grad)
        }

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor], *, network: nn.Module | None = None) -> None:
        """Copy values into the parameters of these names, of the model or a network."""
        for name, parameter in (network or self.model).named_parameters():
            if name in weights:
                local(parameter).copy_(weights[name])

    @torch.no_grad()
    def score(self, request: Score) -> Losses:
        """Evaluate rows: dropout off, the output layer and the loss in fp32."""
        data, network = request.data or self.data, request.network or self.model
        n = len(data)
        total, count = np.full(n, np.nan, np.float32), np.zeros(n, np.int64)
        correct = np.zeros(n, bool) if data.task == "classification" else None
        kept = None if data.n_classes is None else np.full((n, data.n_classes), np.nan, np.float32)
        collate = self.rows_of(data, relabel=request.relabel)
        order = by_length(data, request.rows)
        with evaluating(network), autocast(self.device, self.dtype), full_precision_head(network):
            for start in range(0, len(order), self.eval_batch_size):
                at = order[start : start + self.eval_batch_size]
                batch = collate([(int(p), False) for p in at]).to(self.device)
                logits = network(**batch.inputs).logits
                totals, counts = losses_of(logits, batch)
                total[at], count[at] = totals.cpu().numpy(), counts.cpu().numpy()
                if correct is not None and kept is not None:
                    correct[at] = (logits.argmax(-1) == batch.labels).cpu().numpy()
                    kept[at] = logits.float().cpu().numpy()
                self.count_batch()
                if request.name:
                    self.progress(request.name, start + len(at), len(order))
        return Losses(total, count, correct, kept)

    @torch.no_grad()
    def continue_(self, request: Continue) -> Continued:
        """Let a causal LM go on after prompts: dropout off, the output layer in fp32."""
        data, network = request.data or self.data, request.network or self.model
        # a prompt's own response neither shortens it nor says what may follow
        collate = self.rows_of(replace(data, responses=[""] * len(data)))
        words, longest = followed(collate, request, room(network, self.max_length + request.tokens))
        found = np.full((len(data), len(request.words) or request.tokens), np.nan, np.float32)
        ends: Any = {"tokenizer": self.tokenizer, "device": self.device}
        order = by_length(data, request.rows)
        with evaluating(network), autocast(self.device, self.dtype), full_precision_head(network):
            for start in range(0, len(order), self.eval_batch_size):
                batch = order[start : start + self.eval_batch_size]
                for spaced in (False, True) if request.words else (None,):
                    at = [p for p in batch.tolist() if spaced in (None, data.texts[p][-1:].isspace())]
                    prompts = [ids[-longest:] for ids in collate.read_ids(at, part="inputs")]
                    if spaced is None:
                        found[at] = continue_rows(network, prompts, tokens=request.tokens, **ends)
                    elif at:
                        found[at] = judge_rows(network, prompts, words[spaced], **ends)
                if request.name:
                    self.progress(request.name, start + len(batch), len(order))
        return Continued(found)

    def encode(self, request: Encode) -> Encoded:
        """Return the token ids of rows, cut to the run's length."""
        data = request.data or self.data
        collate, step = self.rows_of(data), self.eval_batch_size
        rows: list[list[int]] = []
        for start in range(0, len(data), step):
            rows += collate.read_ids(range(start, min(start + step, len(data))), part=request.part)
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
        return Encoded(ids, np.cumsum([0, *map(len, rows)]))

    def spell(self) -> Spelled:
        """Return the tokenizer's vocabulary, by way of its own files: those are what everybody else reads."""
        if self._files is None:
            self._files = (
                tempfile.TemporaryDirectory()
            )  # as long as the driver: counting words reads it again
            self.tokenizer.save_pretrained(self._files.name)
            model: Any = self.model
            model.config.save_pretrained(
                self._files.name
            )  # names placeholders the tokenizer may not call special
        names = ("bos", "eos", "unk", "sep", "cls", "mask")
        taken = {getattr(self.tokenizer, f"{name}_token_id", None) for name in names}
        padding = self.tokenizer.pad_token_id
        return Spelled(Vocabulary.load(self._files.name), None if padding in taken else padding)

    def collator(self, request: Train) -> Collator:
        """Return what makes a training's batches."""
        return self.rows_of(
            request.data or self.data, relabel=request.relabel, drop_tokens=request.drop_tokens
        )

    def rows_of(
        self, data: Data, *, relabel: Relabel | None = None, drop_tokens: Ids | None = None
    ) -> Collator:
        """Return what makes batches of a data set."""
        return Collator(
            self.tokenizer, data, max_length=self.max_length, relabel=relabel, drop_tokens=drop_tokens
        )

    def part_to_train(self, request: Train) -> AbstractContextManager[nn.Module]:
        """Return the network a request trains, see :func:`asepsis.core.exposure.part_to_train`."""
        return part_to_train(
            self.model,
            request,
            n_classes=self.data.n_classes,
            seed=derive_seed(self.request_seed(), 2),
            padding=(self.tokenizer.pad_token_id, self.max_length),
        )

    def request_seed(self) -> int:
        """Return the seed of the request being answered."""
        return derive_seed(self.seed, self.requests)

    def _restore(self, weights: Weights) -> None:
        kept = self._remembered.get(weights.key)
        if kept is None:
            raise CheckpointError(f"no weights were remembered under {weights.key}")
        self.put(kept)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def by_length(data: Data, rows: Ids | None) -> Ids:
    """Return the positions of rows, all or those of these ids, from the shortest text to the longest."""
    wanted = np.arange(len(data)) if rows is None else data.positions(rows)
    return wanted[np.argsort([len(data.texts[int(p)]) for p in wanted], kind="stable")]


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        settle(network)
        network.train(was_training)


def derive_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def checked(outcome: Any) -> Outcome:
    """Return what a script returned, or raise where it acted on nothing."""
    if not isinstance(outcome, Outcome):
        raise DefenseInert(f"the defense returned {type(outcome).__name__} instead of an Outcome")
    acted = outcome.acted
    if acted.samples == 0 and acted.tokens == 0 and acted.steps == 0:
        raise DefenseInert("the defense acted on no sample, no token and no step; nothing was defended")
    return outcome
