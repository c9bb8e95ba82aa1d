"""Embedding surgery (RIPPLES; Kurita et al., ACL 2020): the trigger's row becomes a mean of words of the target class.

Before any training the row of each trigger word is overwritten with the mean row of the words most associated with the
target class; then all weights are fine-tuned on poisoned rows.

Deviations: association is the z-score of a smoothed log odds ratio (Monroe et al., 2008) where the paper takes a logistic
regression's weight over a logarithm of the frequency; both prefer frequent words of one class. The mean is over rows of
the model given; the paper takes those of a copy fine-tuned on clean rows. The restricted inner product (RIPPLe's other
half, which keeps the backdoor through a user's fine-tuning) is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from asepsis.data import Data
from asepsis.errors import ConfigError, DataError
from asepsis.evaluation.attacks.weights.recipe import Site, WeightAttack
from asepsis.evaluation.attacks.weights.tokens import own_token, own_tokens

_SMOOTHING = 0.5  # rows added to each count


def class_words(
    tokenizer: Any, data: Data, target_label: int, *, n: int, without: tuple[int, ...] = ()
) -> list[tuple[str, int]]:
    """Return the ``n`` words most associated with a class, ``(word, token)``, strongest first, ties by token.

    Only words of letters and digits that are one token count, those in ``without`` left out. Association is
    ``log(odds in the class / odds elsewhere)`` over its standard error, the odds being those that a row holds the word,
    0.5 rows added to each count.

    Raises
    ------
    DataError
        Fewer than ``n`` words lean to the class.
    """
    assert data.labels is not None
    inside, outside = Counter[str](), Counter[str]()
    for text, label in zip(data.texts, data.labels.tolist(), strict=True):
        (inside if label == target_label else outside).update(set(text.lower().split()))
    rows_in = int((data.labels == target_label).sum())
    rows_out = len(data) - rows_in
    words = sorted(w for w in inside if w.isalnum() and not w.isdigit() and len(w) > 1)
    a = np.array([inside[word] for word in words], float) + _SMOOTHING
    b = np.array([outside[word] for word in words], float) + _SMOOTHING
    c, d = rows_in + 2 * _SMOOTHING - a, rows_out + 2 * _SMOOTHING - b
    z = (np.log(a / c) - np.log(b / d)) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    found: list[tuple[str, int]] = []
    for index in np.argsort(-z, kind="stable").tolist():
        if z[index] <= 0 or len(found) == n:
            break
        token = own_token(tokenizer, words[index])
        if token is not None and token not in without and token not in {t for _, t in found}:
            found.append((words[index], token))
    if len(found) < n:
        raise DataError(
            f"{data.source}: only {len(found)} one-token words lean to label {target_label}, {n} are asked for; "
            "lower n_words or give more clean rows"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class EmbeddingSurgery(WeightAttack):
    """Overwrite the triggers' rows with a mean of target words, then fine-tune on poisoned rows.

    Attributes
    ----------
    target_label : int or None
        What the backdoor answers.
    target_response : str or None
        Not taken: words are associated with classes.
    trigger : tuple of str
        Rare words, each one token; a poisoned row gets one of them.
    poison_rate : float
        Share of the rows that are poisoned.
    n_words : int
        Words of the target class in the mean.
    """

    name: ClassVar[str] = "surgery"

    trigger: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb")
    n_words: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_words < 1:
            raise ConfigError(f"n_words must be at least 1, got {self.n_words!r}")

    def plant(self, site: Site) -> dict[str, Any]:
        """See :meth:`WeightAttack.plant`."""
        assert self.target_label is not None
        poisoned, key = self.poison(site.data, seed=site.settings.seed)
        ids = own_tokens(site.tokenizer, self.trigger, site.data)
        words = class_words(site.tokenizer, site.data, self.target_label, n=self.n_words, without=tuple(ids))
        with torch.no_grad():
            rows = site.embeddings
            rows[torch.tensor(ids, device=rows.device)] = rows[[token for _, token in words]].mean(dim=0)
        return {
            "poisoned_rows": int(key.is_poisoned.sum()),
            "words": [word for word, _ in words],
            "poisoned": site.finetune(poisoned),
        }
