"""STRIP for text: an input that keeps its answer whatever is done to it is suspicious.

Papers: "STRIP: A Defense Against Trojan Attacks on Deep Neural Networks" (Gao et al., ACSAC 2019, arXiv 1902.06531) for
images; "Design and Evaluation of a Multi-Domain Trojan Detection Method on Deep Neural Networks" (Gao et al., arXiv
1911.10312; IEEE TDSC 2021), STRIP-ViTA, for text.

Certain, from the abstracts and titles: strong intentional perturbation of the input at run time, low entropy of the
predicted classes means a trojaned input, the boundary is set by a preset false rejection rate on clean inputs. Recalled
and not checked against the papers' text: several copies of the input, a share of each copy's words replaced by words of
other clean samples that tf-idf ranks high, and the mean Shannon entropy over the copies.

Algorithm here. For each input, ``n_copies`` times: draw a clean row, replace ``replace_ratio`` of the input's words, at
random places, by that row's highest tf-idf words. Suspicion is minus the mean entropy, in nats, of the model's answer
to the copies. What is drawn depends on the seed and on the text itself, so a score depends neither on the other inputs
nor on their order.

Deviations
----------
* Places are drawn at random (at least one word is replaced and at least one stays). The image form lays the whole input
  under another image; here a one-word trigger survives in about ``1 - replace_ratio`` of the copies.
* Words that all clean rows begin or end with, a prompt template, are not replaced.
* Causal LMs, not in the papers: the entropy over the answers that the clean rows have, each by the mean log-probability
  of its tokens after the prompt; where answers are free, that of the next token.
* Number of copies and share are this project's: the papers' values for text were not available.

Cost: ``n_copies`` forward passes per input.

When not to trust it
--------------------
Short texts: one or two words replaced is a new text, one word kept is none; a text of fewer than two words is not
perturbed at all and its score is the entropy of the plain answer. Triggers spread over the sentence (a style, a syntax)
break with the words. Inputs of a class that the model takes for the default anyway keep their answer without any
trigger. Causal LMs that answer freely: the entropy of the next word says more about the prompt than about a trigger.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from asepsis.core.documents import read_json
from asepsis.data import Data
from asepsis.data.dataset import Task
from asepsis.defenses._psim_labels import answers_of, verbalizers_of
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import CheckpointError, ConfigError, DefenseInert
from asepsis.inference.detectors._answers import Answers, entropy
from asepsis.inference.detectors._checks import at_least, of_task
from asepsis.inference.detectors._words import Frame, generator, telling_words, with_replaced
from asepsis.inference.detectors.base import Detector
from asepsis.training.driver import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Self

_FILE = "strip_words.json"
_MOST_COPIES = 10_000
_MOST_WORDS = 256  # of one donor row; longer rows are gone through again


@dataclass(frozen=True, kw_only=True)
class StripConfig(DefenseConfig):
    """Settings of STRIP. All defaults are this project's.

    Attributes
    ----------
    n_copies : int
        Perturbed copies of each input.
    replace_ratio : float
        Share of an input's words that are replaced in each copy.
    most_donors : int
        Clean rows whose words are kept, drawn by the seed where there are more.
    label_words : tuple of str
        Causal LMs: the answers to be told apart. Without them those of the clean rows where these have few, as PSIM
        tells verbalizers; else the whole vocabulary.
    """

    n_copies: int = 20
    replace_ratio: float = 0.5
    most_donors: int = 500
    label_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, n_copies=self.n_copies)
        if self.n_copies > _MOST_COPIES:
            raise ConfigError(f"n_copies must be at most {_MOST_COPIES:,}, got {self.n_copies:,}")
        at_least(2, most_donors=self.most_donors)
        if not 0 < self.replace_ratio < 1:
            raise ConfigError(f"replace_ratio must lie in (0, 1), got {self.replace_ratio!r}")


class Strip(Detector):
    """Suspicion is minus the mean entropy of the answers to perturbed copies, nats, float32.

    Parameters
    ----------
    model, tokenizer
        What is guarded.
    task : {"classification", "causal"}
    donors : sequence of lists of str
        Words of clean rows, the most telling first; one list a row.
    frame : Frame, optional
        What all prompts begin and end with.
    config : StripConfig, optional
    seed : int
        Of places and donors.
    max_length, batch_size : int
        Tokens read of each copy; copies in one forward pass.
    """

    config_type: ClassVar[type[DefenseConfig]] = StripConfig
    least_rows: ClassVar[int] = 16

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        task: Task,
        donors: Sequence[Sequence[str]],
        frame: Frame | None = None,
        config: StripConfig | None = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
    ) -> None:
        self.config = StripConfig() if config is None else config
        self.task: Task = task
        self.donors = [list(words) for words in donors if words]
        if not self.donors:
            raise DefenseInert("STRIP needs clean rows with words to put in; none of those given has a word")
        self.frame = Frame() if frame is None else frame
        self.seed = seed
        self._answers = Answers(
            model=model,
            tokenizer=tokenizer,
            task=task,
            label_words=self.config.label_words,
            max_length=max_length,
            batch_size=batch_size,
        )

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        clean: Data,
        *,
        config: StripConfig | None = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Self:
        """Take the words of clean rows as donors; nothing is learned.

        Raises
        ------
        DefenseInert
            No clean row has a word.
        """
        chosen = StripConfig() if config is None else config
        if not chosen.label_words and answers_of(clean, "auto") == "verbalizers":
            chosen = replace(chosen, label_words=tuple(verbalizers_of(clean)))
        frame = Frame.of(clean.texts)
        ranked = telling_words(clean.texts, frame=frame, most=_MOST_WORDS)
        donors = [words for words in ranked if words]
        if len(donors) > chosen.most_donors:
            drawn = np.random.default_rng(seed).choice(len(donors), chosen.most_donors, replace=False)
            donors = [donors[at] for at in sorted(drawn.tolist())]
        return cls(
            model,
            tokenizer,
            task=clean.task,
            donors=donors,
            frame=frame,
            config=chosen,
            seed=seed,
            max_length=max_length,
            batch_size=batch_size,
        )

    def copies(self, text: str) -> list[str]:
        """Return the perturbed copies of one text."""
        rng = generator(text, self.seed)
        rows = rng.integers(len(self.donors), size=self.config.n_copies).tolist()
        ratio = self.config.replace_ratio
        return [with_replaced(text, self.donors[row], ratio, rng, frame=self.frame) for row in rows]

    def scores(self, data: Data) -> NDArray[np.float32]:
        """Return suspicion [N]."""
        of_task(data, self.task, self.name)
        copies = [copy for text in data.texts for copy in self.copies(text)]
        entropies = self._answers.read(copies, entropy)
        means: NDArray[np.float64] = entropies.reshape(len(data), self.config.n_copies).mean(axis=1)
        return (-means).astype(np.float32)

    def cut(self, data: Data) -> NDArray[np.bool_]:
        """See :meth:`Detector.cut`; a copy is about as long as its text."""
        return self._answers.cut(data.texts)

    def state(self) -> dict[str, Any]:
        """Return settings, task and seed."""
        own = {"config": self.config.to_dict(), "task": self.task, "seed": self.seed}
        return {**own, **self._answers.limits()}

    def report(self) -> dict[str, Any]:
        """Return how many rows give words, the template found around all prompts, and the answers told apart."""
        frame = {"before": list(self.frame.before), "after": list(self.frame.after)}
        words = list(self.config.label_words)
        return {"donors": len(self.donors), "frame": frame, "label_words": words}

    def save(self, folder: Path) -> None:
        """Write the donors' words: words of the clean rows, though not in their order."""
        frame = {"before": self.frame.before, "after": self.frame.after}
        content = json.dumps({"donors": self.donors, "frame": frame})
        (folder / _FILE).write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """Return the detector saved in ``folder``.

        Raises
        ------
        CheckpointError
            The words are missing or broken.
        """
        try:
            words = read_json(folder / _FILE, most=1 << 28)
            donors = words["donors"]
            frame = Frame(before=tuple(words["frame"]["before"]), after=tuple(words["frame"]["after"]))
            told = [*donors, frame.before, frame.after]
            if not donors or not all(isinstance(word, str) for row in told for word in row):
                raise TypeError("donors and frame are words")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / _FILE} is missing or broken ({error!r}); fit the guard again"
            ) from error
        return cls(
            model,
            tokenizer,
            task="classification" if state["task"] == "classification" else "causal",
            donors=donors,
            frame=frame,
            config=StripConfig.from_dict(state["config"]),
            seed=state["seed"],
            max_length=state["max_length"],
            batch_size=state["batch_size"],
        )
