"""ONION as a detector: a word without which the text reads much better is suspicious.

Paper: "ONION: A Simple and Effective Defense Against Textual Backdoor Attacks" (Qi et al., EMNLP 2021, arXiv 2011.10369).

Certain: a word's suspicion is the decrease of a language model's perplexity when the word is left out,
``f_i = p_0 - p_i``. The paper removes the words above a bar and classifies what is left; it tunes the bar on clean
validation rows and its language model is GPT-2.

Algorithm here. ``p_0`` is the perplexity of the whole text, ``p_i`` of the text without word ``i``, for every word, the
last one included. The suspicion of an input is its largest ``f_i``. Nothing is removed: the guard sets the bar on clean
rows and flags the input.

Deviations
----------
* The language model is the packaged ``demo:causal`` (SmolLM2-135M) or any causal LM named in the settings, not GPT-2.
  It is never the guarded model: that one may find its trigger ordinary.
* A text starts after the model's beginning-of-text token, so the first word has a likelihood too.
* Texts of more than ``window_words`` words are halved until they fit, and each part is scored by itself: work then
  grows with the length, not with its square. A part of fewer than four words that is still longer than the language
  model reads at once (long strings, languages written without spaces) is read in stretches that overlap by half. Nothing is cut off.
* White space stays as it is: words are not joined anew by single spaces.

Cost: one forward pass of the language model per word, and one per part, more for stretches; none of the guarded model. All variants of many
texts share batches.

When not to trust it
--------------------
Triggers of several words: without one of them the others still stand there. Triggers made up of ordinary words or of
style and syntax: the text is fluent. Texts that are odd by nature (misspelled, code, lists, another language than the
language model's) have large drops without any trigger; calibrate on rows as they will come in. Languages written without
spaces: the whole text is one word. A text of fewer than two words has nothing to compare with: its score is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError, DefenseInert
from asepsis.inference.detectors._checks import at_least
from asepsis.inference.detectors._perplexity import PerplexityScorer
from asepsis.inference.detectors._words import halves, leave_one_out, words_of
from asepsis.inference.detectors.base import Detector
from asepsis.training.driver import Progress, silent
from asepsis.training.forward import Precision
from asepsis.training.models import load_for

if TYPE_CHECKING:
    from typing_extensions import Self

_LARGEST_LOG = 60.0  # e^60 is 1e26: perplexities stay finite in fp32
_AT_ONCE = 1024  # variants held in memory
_ANY_CAUSAL = Data(task="causal", texts=[""], responses=[""])  # says what kind of model to load


@dataclass(frozen=True, kw_only=True)
class OnionConfig(DefenseConfig):
    """Settings of ONION. All defaults are this project's.

    Attributes
    ----------
    language_model : str
        A causal LM: ``demo:causal``, ``demo:causal:LAYERS``, a folder or a hub id.
    window_words : int
        Most words of a part that is scored by itself.
    max_tokens : int
        Tokens the language model reads at once; a part of more is halved while it has four words, and then read in stretches.
    batch_tokens : int
        Most tokens in one forward pass.
    precision : {"fp32", "bf16", "auto"}
        Of the language model's matrix products, the last one excepted.
    """

    language_model: str = "demo:causal"
    window_words: int = 64
    max_tokens: int = 512
    batch_tokens: int = 1024
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.language_model:
            raise ConfigError("language_model must name a causal LM, got ''; the packaged one is demo:causal")
        at_least(3, window_words=self.window_words)  # halves then have two words, and one can be left out
        at_least(2, max_tokens=self.max_tokens)
        at_least(1, batch_tokens=self.batch_tokens)


class Onion(Detector):
    """Suspicion is the largest perplexity drop of leaving one word out, float32.

    Parameters
    ----------
    language_model, tokenizer
        A causal LM that is trusted, and its tokenizer. The guarded model is not asked.
    config : OnionConfig, optional
        Its ``language_model`` names what :meth:`load` loads.
    """

    config_type: ClassVar[type[DefenseConfig]] = OnionConfig

    def __init__(self, language_model: Any, tokenizer: Any, *, config: OnionConfig | None = None) -> None:
        self.config = OnionConfig() if config is None else config
        self._scorer = PerplexityScorer(
            language_model,
            tokenizer,
            max_tokens=self.config.max_tokens,
            batch_tokens=self.config.batch_tokens,
            precision=self.config.precision,
        )

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        clean: Data,
        *,
        config: OnionConfig | None = None,
        seed: int = 0,
        max_length: int = 128,
        batch_size: int = 32,
        progress: Progress = silent,
    ) -> Self:
        """Load the language model to the guarded model's device; nothing is learned and nothing drawn.

        The guarded model is not asked, so ``max_length`` and ``batch_size`` are not read: every word of a text is
        judged, and the settings say how much goes into a forward pass.

        Raises
        ------
        DefenseInert
            No clean row has two words, so that no word can be left out.
        ModelError
            The language model cannot be loaded.
        """
        if not any(len(words_of(text)) > 1 for text in clean.texts):
            raise DefenseInert(
                f"{clean.source}: ONION leaves out one word at a time, and no clean row has two words"
            )
        return cls._loaded(OnionConfig() if config is None else config, model)

    @classmethod
    def _loaded(cls, config: OnionConfig, guarded: Any, *, from_file: bool = False) -> Self:
        language_model, tokenizer = load_for(_ANY_CAUSAL, config.language_model, from_file=from_file)
        device = next(guarded.parameters()).device
        return cls(language_model.eval().to(device), tokenizer, config=config)

    def drops(self, text: str) -> NDArray[np.float64]:
        """Return the perplexity drop of each word of one text, float64 [words]; 0 for a word that stands alone."""
        return self._drops([text])[0]

    def scores(self, data: Data) -> NDArray[np.float32]:
        """Return suspicion [N]; 0 for a text of fewer than two words."""
        found: list[float] = []
        waiting: list[str] = []
        size = 0
        for text in data.texts:
            waiting.append(text)
            size += 1 + len(words_of(text))
            if size >= _AT_ONCE:
                found += [float(d.max(initial=-np.inf)) for d in self._drops(waiting)]
                waiting, size = [], 0
        found += [float(d.max(initial=-np.inf)) for d in self._drops(waiting)]
        scores = np.asarray(found, np.float64)
        return np.where(np.isneginf(scores), 0, scores).astype(np.float32)

    def cut(self, data: Data) -> NDArray[np.bool_]:
        """Return no row, whatever its length: nothing is cut off."""
        return np.zeros(len(data), np.bool_)

    def _drops(self, texts: list[str]) -> list[NDArray[np.float64]]:
        variants = [[[part, *leave_one_out(part)] for part in self._parts(text)] for text in texts]
        flat = [variant for parts in variants for group in parts for variant in group]
        logs = np.minimum(self._scorer.log_perplexity(flat), _LARGEST_LOG)
        perplexity, start, answer = np.exp(logs), 0, []
        for parts in variants:
            drops = []
            for group in parts:
                whole, without = perplexity[start], perplexity[start + 1 : start + len(group)]
                drops.append(whole - without if len(without) > 1 else np.zeros(len(without)))
                start += len(group)
            answer.append(np.concatenate(drops))
        return answer

    def _parts(self, text: str) -> list[str]:
        n = len(words_of(text))
        room = self._scorer.max_tokens - 1
        if n <= self.config.window_words and (n < 4 or len(self._scorer.ids(text)) <= room):
            return [text]
        return [part for half in halves(text) for part in self._parts(half)]

    def state(self) -> dict[str, Any]:
        """Return the settings, the language model's name among them."""
        return {"config": self.config.to_dict()}

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> Self:
        """Return the detector that :meth:`state` describes; the language model is loaded anew."""
        return cls._loaded(OnionConfig.from_dict(state["config"]), model, from_file=True)
