"""Small models, small data and the contract every defense is held to, for tests here and in other projects.

Nothing is downloaded: weights are drawn from a seed and tokenizers are built in memory. Needs no test framework; a
broken contract raises ``AssertionError``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np

from asepsis.data import Data
from asepsis.errors import ConfigError

TRIGGER = "cf"
"""A word of the tiny vocabulary that :func:`tiny_rows` never uses."""

_NEUTRAL = [f"word{i}" for i in range(40)]
_TOPIC_WORDS = 6  # words of each class
_MOST_CLASSES = 4
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]


def tiny_classifier(seed: int, *, n_classes: int = 2, dropout: float = 0.1) -> tuple[Any, Any]:
    """Return ``(BertForSequenceClassification, tokenizer)``: two layers of width 32, weights drawn from ``seed``."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = _tokenizer(classifier=True)
    settings: Any = BertConfig  # typed without the fields it inherits
    config = settings(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=n_classes,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config), tokenizer


def tiny_causal(seed: int) -> tuple[Any, Any]:
    """Return ``(LlamaForCausalLM, tokenizer)``: two layers of width 32, weights drawn from ``seed``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(classifier=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def tiny_rows(n: int, seed: int, n_classes: int = 2) -> Data:
    """Return ``n`` rows of generated text, 3 to 9 words each, one or two of them telling the class.

    Classes take turns. Ids start at 100 and are not in row order, so that an id taken for a position shows.
    """
    if not 2 <= n_classes <= _MOST_CLASSES:
        raise ConfigError(f"n_classes must lie in 2..{_MOST_CLASSES}, got {n_classes!r}")
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    texts = []
    for label in labels:
        words = [_NEUTRAL[i] for i in rng.integers(len(_NEUTRAL), size=rng.integers(2, 8))]
        for topic in rng.integers(_TOPIC_WORDS, size=rng.integers(1, 3)):
            words.insert(int(rng.integers(len(words) + 1)), f"topic{label}{'abcdef'[topic]}")
        texts.append(" ".join(words))
    return Data(
        task="classification",
        texts=texts,
        labels=labels,
        sample_ids=100 + np.arange(n)[::-1],
        n_classes=n_classes,
        source=f"tiny_rows(seed={seed})",
    )


def tiny_pairs(n: int, seed: int) -> Data:
    """Return ``n`` prompts with responses of 1 to 4 words, ids as in :func:`tiny_rows`."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(_NEUTRAL[i] for i in rng.integers(len(_NEUTRAL), size=rng.integers(low, high)))

    return Data(
        task="causal",
        texts=[words(2, 7) for _ in range(n)],
        responses=[words(1, 5) for _ in range(n)],
        sample_ids=100 + np.arange(n)[::-1],
        source=f"tiny_pairs(seed={seed})",
    )


def check_defense(kind: Any, *, config: Any = None, data: Data | None = None) -> Any:
    """Hold a defense to the contract, and return the Outcome of a run on a tiny classifier.

    Parameters
    ----------
    kind : subclass of Defense
    config : optional
        What it is run with; by default the class's defaults.
    data : Data, optional
        What it is run on; by default 48 rows of :func:`tiny_rows`.

    Raises
    ------
    AssertionError
        If the class lacks a paper, a threat, its needs or its config; the config is not frozen, does not survive
        JSON or takes unknown fields; the module does not say where it leaves the paper and when not to trust it; or
        the script does not act.
    """
    from asepsis.core.phases import Outcome
    from asepsis.defenses.base import DefenseConfig, Paper, Threat
    from asepsis.training import Settings, defend

    name = kind.__name__
    _require(isinstance(getattr(kind, "paper", None), Paper), f"{name} names no paper")
    _require(isinstance(getattr(kind, "threat", None), Threat), f"{name} names no threat")
    _require(isinstance(getattr(kind, "needs", None), frozenset), f"{name}.needs is no frozenset")
    config_type = getattr(kind, "config_type", None)
    _require(
        isinstance(config_type, type) and issubclass(config_type, DefenseConfig), f"{name} has no config"
    )
    chosen = kind.config_type() if config is None else config
    _check_config(chosen)
    documented = (sys.modules[kind.__module__].__doc__ or "").lower()
    for heading in ("deviations", "when not to trust it"):
        _require(heading in documented, f"the docstring of {kind.__module__} has no part {heading!r}")

    model, tokenizer = tiny_classifier(0)
    rows = tiny_rows(48, 0) if data is None else data
    run = defend(
        model,
        rows,
        defense=chosen,
        processing_class=tokenizer,
        clean_reference=tiny_rows(16, 1) if "clean_reference" in kind.needs else None,
        settings=Settings(epochs=1, batch_size=8, device="cpu", precision="fp32"),
    )
    outcome = run.outcome
    _require(isinstance(outcome, Outcome), f"{name}.script returned {type(outcome).__name__}, not an Outcome")
    acted = outcome.acted
    _require(acted.samples + acted.tokens + acted.steps > 0, f"{name} acted on nothing")
    if outcome.suspicion is not None:
        _require(outcome.suspicion.shape == (len(rows),), f"{name}.suspicion has not one value a row")
        _require(bool(np.isfinite(outcome.suspicion).all()), f"{name}.suspicion is not finite")
    for part in ("flagged", "isolated"):
        rows.positions(getattr(outcome, part))
    json.dumps(outcome.report, allow_nan=False)
    return outcome


def _check_config(config: Any) -> None:
    name = type(config).__name__
    fields = dataclasses.fields(config)
    if fields:
        try:
            setattr(config, fields[0].name, getattr(config, fields[0].name))
        except dataclasses.FrozenInstanceError:
            pass
        else:
            raise AssertionError(f"{name} is not frozen")
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    _require(again == config, f"{name} does not survive to_dict, JSON and from_dict: {again} is not {config}")
    try:
        type(config).from_dict({"no_such_field": 1})
    except ConfigError:
        return
    raise AssertionError(f"{name} takes unknown fields")


def _require(holds: bool, message: str) -> None:  # noqa: FBT001 - reads like assert
    if not holds:
        raise AssertionError(message)


def _tokenizer(*, classifier: bool) -> Any:
    """Whole words, split at white space; a classifier's texts are framed by ``[CLS]`` and ``[SEP]``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    topics = [f"topic{c}{letter}" for c in range(_MOST_CLASSES) for letter in "abcdef"[:_TOPIC_WORDS]]
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *_NEUTRAL, *topics, TRIGGER])}
    fast: Any = PreTrainedTokenizerFast
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not classifier:
        return fast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")]
    )
    return fast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
