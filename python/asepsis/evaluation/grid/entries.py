"""The rows of the table: what each kind does with the untrusted rows, the trusted ones and the undefended model.

``none``, ``clean-only``, ``clean-tuning`` and ``lora`` are controls: plain training on the poisoned rows, on the rows before
the poison, on the poisoned and then the trusted rows, and of a plain adapter. A defense's name trains under it or, for
those of weights, repairs the undefended model; several joined by ``+`` repair in a row. A detector's name puts a guard in
front of the undefended model. ``zscore`` throws out rows by :mod:`asepsis.evaluation.baselines.zscore` and trains on the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import asepsis.defenses as defenses
import asepsis.inference.detectors as detectors
from asepsis.core.phases import Acted, Outcome
from asepsis.data.values import listed
from asepsis.defenses.base import Defense
from asepsis.errors import ConfigError, DefenseInert
from asepsis.evaluation.baselines.zscore import BAR, by_words
from asepsis.evaluation.grid.sources import Sources
from asepsis.inference.guard import Guard
from asepsis.training import defend, run_script
from asepsis.training.purify import purify
from asepsis.training.settings import Settings
from asepsis.training.undefended import undefended

CONTROLS = ("none", "clean-only", "clean-tuning", "lora")


@dataclass(frozen=True)
class Made:
    """What an entry made.

    Attributes
    ----------
    model, tokenizer
    outcome : Outcome or None
        Of a training under a defense; None for the rest.
    guard : Guard or None
        In front of the model.
    manifest : dict
    """

    model: Any
    tokenizer: Any
    outcome: Outcome | None
    guard: Guard | None
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Site:
    """What an entry works with: ``control(name)`` gives the folder of a control of the same attack and seed."""

    model: str
    rows: Sources
    settings: Settings
    control: Callable[[str], Path]


def check_entry(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` where an entry of the grid names no kind there is, or a field its config has not."""
    kind = entry.get("kind", name)
    fields = {key: value for key, value in entry.items() if key != "kind"}
    if kind in CONTROLS or kind == "zscore":
        known = {"clean-tuning": {"epochs", "learning_rate"}, "zscore": {"bar"}}.get(kind, set())
        if unknown := set(fields) - known:
            raise ConfigError(f"defenses: {name} has no field {listed(sorted(unknown))}")
    else:
        _configs(name, kind, fields)


def carry_out(name: str, entry: Mapping[str, Any], site: Site) -> Made:
    """Make what an entry of the grid declares."""
    kind = entry.get("kind", name)
    fields = {key: value for key, value in entry.items() if key != "kind"}
    if kind in CONTROLS:
        return _control(kind, fields, site)
    if kind == "zscore":
        return _zscore(site, **fields)
    configs, repairs, guards = _configs(name, kind, fields)
    if guards:
        model = site.control("none")
        guard = Guard.fit(
            str(model), site.rows.clean, detector=configs[0], seed=site.settings.seed, **_guarding(site)
        )
        return Made(guard.model, None, None, guard, guard.manifest)
    if repairs:
        done = purify(
            site.control("none"),
            base=site.model,
            defense=configs,
            clean=site.rows.clean,
            settings=site.settings,
        )
        return Made(done.model, done.tokenizer, None, None, done.manifest)
    run = defend(
        site.model,
        site.rows.train,
        defense=configs[0],
        clean_reference=site.rows.clean,
        settings=site.settings,
    )
    return Made(run.model, run.tokenizer, run.outcome, None, run.manifest)


def _guarding(site: Site) -> dict[str, Any]:
    return {"target_fpr": 0.05, "max_length": site.settings.max_length}


def _control(kind: str, fields: Mapping[str, Any], site: Site) -> Made:
    from dataclasses import replace

    start: str | Path = site.model
    rows, settings, peft_config = site.rows.train, site.settings, None
    if kind == "clean-only":
        rows = site.rows.sound
    elif kind == "clean-tuning":
        start, rows = site.control("none"), site.rows.clean
        settings = replace(settings, **{"epochs": 5.0, **fields})
    elif kind == "lora":
        from peft import LoraConfig

        peft_config = LoraConfig(r=8, lora_alpha=16, task_type="SEQ_CLS")
        settings = replace(settings, learning_rate=10 * settings.learning_rate)
    run = defend(str(start), rows, defense=None, settings=settings, peft_config=peft_config)
    return Made(run.model, run.tokenizer, None, None, run.manifest)


def _zscore(site: Site, *, bar: float = BAR) -> Made:
    suspicion, flags = by_words(site.rows.train, bar=bar)
    ids = site.rows.train.sample_ids
    if flags.all():
        raise DefenseInert(f"every row holds a word above the bar {bar:g}; nothing is left to train on")
    run = run_script(
        site.model,
        site.rows.train,
        lambda network, data: undefended(len(data), ids[~flags]),
        defense={"name": "zscore", "config": {"bar": bar}},
        settings=site.settings,
    )
    outcome = Outcome(
        acted=Acted(samples=len(ids), steps=run.outcome.acted.steps),
        flagged=ids[flags],
        suspicion=suspicion.astype(np.float32),
        report=run.outcome.report,
    )
    return Made(run.model, run.tokenizer, outcome, None, run.manifest)


def _configs(name: str, kind: str, fields: Mapping[str, Any]) -> tuple[list[Any], bool, bool]:
    """The configs of a kind, whether it repairs weights, and whether it is a guard."""
    words = str(kind).split("+")
    if len(words) == 1 and kind in detectors.available():
        return [detectors.load(kind).config_type.from_dict(dict(fields))], False, True
    if unknown := [word for word in words if word not in defenses.available()]:
        there = (*CONTROLS, "zscore", *defenses.available(), *detectors.available())
        raise ConfigError(
            f"defenses: {name}: no kind {listed(unknown)}; there are {listed(sorted(set(there)))}"
        )
    kinds = [defenses.load(word) for word in words]
    repairs = [one.repair is not Defense.repair for one in kinds]
    if len(words) > 1 and not all(repairs):
        raise ConfigError(f"defenses: {name}: only defenses that repair weights can be joined by +")
    if len(words) == 1:
        return [kinds[0].config_type.from_dict(dict(fields))], repairs[0], False
    if unknown := [key for key in fields if key not in words]:
        raise ConfigError(
            f"defenses: {name} takes a mapping for each of {listed(words)}, got {listed(unknown)}"
        )
    return (
        [
            one.config_type.from_dict(dict(fields.get(word, {})))
            for word, one in zip(words, kinds, strict=True)
        ],
        True,
        False,
    )
