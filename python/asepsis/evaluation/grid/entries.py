"""The rows of the table: what each kind does with the untrusted rows, the trusted ones and the undefended model.

``none``, ``clean-only``, ``clean-tuning`` and ``lora`` are controls: plain training on the poisoned rows, on the rows before
the poison, on the poisoned and then the trusted rows, and of a plain adapter. ``untuned`` is the model as it came, where it needs no
training for the task.

A defense's name trains under it or, for those of weights, repairs the undefended model. Several joined by ``+`` follow each
other as in :class:`asepsis.Pipeline`: ``epur+finemixing`` repairs twice, ``epur+musclelora`` repairs and then trains under the
second on the untrusted rows, from the repaired weights. Each takes its fields under its own name.

A detector's name puts a guard in front of the undefended model. ``abl-scan+retrain+guard`` lets ABL judge the rows, trains
undefended on those it does not flag and guards what comes out; its fields are ``abl: {...}`` and ``guard: {detector: psim, ...}``.

Where an attack poisons weights and no rows, ``none`` is its victim; what works on a model as it came meets it, and what trains
from the base has no cell.

``zscore``, ``dedup``, ``cube`` and ``graceful`` are baselines of :mod:`asepsis.evaluation.baselines` that throw rows out; the rest
is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import asepsis.defenses as defenses
import asepsis.inference.detectors as detectors
from asepsis.data.values import listed
from asepsis.defenses.base import Defense, DefenseConfig
from asepsis.errors import ConfigError
from asepsis.evaluation.attacks.weights import Victim, poison_weights
from asepsis.evaluation.grid.filters import FILTERS, filter_and_train
from asepsis.evaluation.grid.pipelines import (
    SCAN_AND_GUARD,
    in_a_row,
    joined,
    scan_and_guard,
    scan_and_guard_configs,
)
from asepsis.evaluation.grid.site import Made, Site
from asepsis.training import Run, defend
from asepsis.training.models import load_task, load_trained

CONTROLS = ("none", "clean-only", "clean-tuning", "lora", "untuned")
_KEPT = ("none", "clean-only")
_FIELDS = {"clean-tuning": {"epochs", "learning_rate"}}


@dataclass(frozen=True)
class Entry:
    """A row of the table, checked.

    Attributes
    ----------
    make : callable
    reads_undefended : bool
        It works on the undefended model, which is made before its time is taken.
    costs_undefended : bool
        That model's training is part of what the row costs.
    packages : tuple of str
        Modules beyond asepsis's own that it needs.
    kept : bool
        It is a control whose model is kept: other entries start from it, or every attack shares it.
    """

    make: Callable[[Site], Made]
    reads_undefended: bool = False
    costs_undefended: bool = False
    packages: tuple[str, ...] = ()
    kept: bool = False

    @property
    def meets_victims(self) -> bool:
        """Whether it has anything to say of a model whose weights were poisoned before it came."""
        return (self.reads_undefended and not self.costs_undefended) or self.kept


def entry_of(name: str, entry: Mapping[str, Any]) -> Entry:
    """Return what an entry of the grid declares.

    Raises
    ------
    ConfigError
        It names no kind there is, or a field its config has not.
    """
    kind = str(entry.get("kind", name))
    fields = {key: value for key, value in entry.items() if key != "kind"}
    if kind in CONTROLS:
        if unknown := set(fields) - _FIELDS.get(kind, set()):
            raise ConfigError(f"defenses: {name} has no field {listed(sorted(unknown))}")
        if kind == "untuned":
            return Entry(_untuned)
        return Entry(
            lambda site: Made.of(train_control(kind, fields, site), judged=False),
            reads_undefended=kind == "clean-tuning",
            kept=kind in _KEPT,
        )
    if kind in FILTERS:
        rule = FILTERS[kind]
        config = rule.config_type.from_dict(fields)
        return Entry(
            lambda site: filter_and_train(site, kind, config),
            reads_undefended=rule.reads_undefended,
            costs_undefended=rule.reads_undefended,
            packages=rule.packages(config),
        )
    if kind == SCAN_AND_GUARD:
        scan, guard = scan_and_guard_configs(name, fields)
        return Entry(lambda site: scan_and_guard(site, scan, guard))
    if kind in detectors.available():
        detector = detectors.load(kind).config_type.from_dict(fields)
        return Entry(partial(_guard, config=detector), reads_undefended=True)
    return _of_defenses(name, kind, fields)


def _of_defenses(name: str, kind: str, fields: Mapping[str, Any]) -> Entry:
    words = kind.split("+")
    if unknown := [word for word in words if word not in defenses.available()]:
        there = {*CONTROLS, *FILTERS, SCAN_AND_GUARD, *defenses.available(), *detectors.available()}
        raise ConfigError(f"defenses: {name}: no kind {listed(unknown)}; there are {listed(sorted(there))}")
    if len(words) > 1:
        several = joined(name, words, fields)
        return Entry(lambda site: in_a_row(site, several), reads_undefended=True)
    one = defenses.load(kind)
    config = one.config_type.from_dict(dict(fields))
    if one.repair is not Defense.repair:
        return Entry(lambda site: in_a_row(site, [config]), reads_undefended=True)
    return Entry(partial(_train, config=config))


def undefended(site: Site) -> Run | Victim:
    """Return the undefended model of the site: trained on the untrusted rows, or the victim whose weights were poisoned."""
    if site.rows.weights is None:
        return train_control("none", {}, site)
    return poison_weights(
        site.model,
        site.rows.sound,
        attack=site.rows.weights,
        seed=site.settings.seed,
        settings=site.settings,
    )


def train_control(kind: str, fields: Mapping[str, Any], site: Site) -> Run:
    """Train a control of the site."""
    start: str | Path = site.model
    rows, settings, peft_config = site.rows.train, site.settings, None
    if kind == "clean-only":
        rows = site.rows.sound
    elif kind == "clean-tuning":
        start, rows = site.undefended(), site.rows.clean
        settings = replace(settings, **{"epochs": 5.0, **fields})
    elif kind == "lora":
        from peft import LoraConfig

        task = "SEQ_CLS" if rows.task == "classification" else "CAUSAL_LM"
        peft_config = LoraConfig(r=8, lora_alpha=16, task_type=task)
        settings = replace(settings, learning_rate=10 * settings.learning_rate)
    return defend(str(start), rows, defense=None, settings=settings, peft_config=peft_config)


def _untuned(site: Site) -> Made:
    network, tokenizer = load_task(site.model, site.rows.train.task)
    return Made(network, tokenizer, None, None, {})


def _train(site: Site, config: DefenseConfig) -> Made:
    run = defend(
        site.model,
        site.rows.train,
        defense=config,
        clean_reference=site.rows.clean,
        settings=site.settings,
    )
    return Made.of(run)


def _guard(site: Site, config: DefenseConfig) -> Made:
    network, tokenizer = load_trained(site.undefended())
    guard = site.guarded(network, tokenizer, config)
    return Made(network, tokenizer, None, guard, guard.manifest)
