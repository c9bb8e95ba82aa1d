"""Entries that are several steps: defenses in a row, and a scan whose rest is trained on and guarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import asepsis.defenses as defenses
import asepsis.inference.detectors as detectors
from asepsis.data.values import listed
from asepsis.defenses.base import Defense, DefenseConfig
from asepsis.errors import ConfigError
from asepsis.evaluation.baselines import Found
from asepsis.evaluation.grid.filters import train_without
from asepsis.evaluation.grid.site import TARGET_FPR, Made, Site
from asepsis.inference.composition import Pipeline
from asepsis.training import build
from asepsis.training.purify import purify
from asepsis.training.scan import scan_data

SCAN_AND_GUARD = "abl-scan+retrain+guard"


def fields_of(name: str, words: Sequence[str], fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the fields of each step; a field that is no step's raises ``ConfigError``."""
    if unknown := [
        key for key, value in fields.items() if key not in words or not isinstance(value, Mapping)
    ]:
        raise ConfigError(
            f"defenses: {name} takes a mapping for each of {listed(words)}, got {listed(unknown)}"
        )
    return {word: dict(fields.get(word, {})) for word in words}


def joined(name: str, words: Sequence[str], fields: Mapping[str, Any]) -> list[DefenseConfig]:
    """Return the configs of defenses joined by ``+``, in an order that can work.

    Raises
    ------
    ConfigError
        The first does not repair weights, or the order cannot work.
    """
    kinds = [defenses.load(word) for word in words]
    if kinds[0].repair is Defense.repair:
        raise ConfigError(
            f"defenses: {name}: only defenses that repair weights, and after them one that trains, are joined by +"
        )
    given = fields_of(name, words, fields)
    configs = [kind.config_type.from_dict(given[word]) for word, kind in zip(words, kinds, strict=True)]
    try:
        Pipeline(configs)
    except ConfigError as error:
        raise ConfigError(f"defenses: {name}: {error}") from None
    return configs


def in_a_row(site: Site, configs: Sequence[DefenseConfig]) -> Made:
    """Repair the undefended model, then train under the next defense, then guard: as far as the steps go."""
    if all(type(build(config)).repair is not Defense.repair for config in configs):
        done = purify(
            site.undefended(), base=site.model, defense=configs, clean=site.rows.clean, settings=site.settings
        )
        return Made(done.model, done.tokenizer, None, None, done.manifest)
    result = Pipeline(configs).run(
        site.undefended(),
        site.rows.train,
        base=site.model,
        clean=site.rows.clean,
        clean_reference=site.rows.clean,
        settings=site.settings,
        tuning=site.settings,
        target_fpr=TARGET_FPR,
    )
    parts = (result.purified, result.run, result.guard)
    return Made(
        result.model,
        result.tokenizer,
        None if result.run is None else result.run.outcome,
        result.guard,
        {"pipeline": [part.manifest for part in parts if part is not None]},
    )


def scan_and_guard_configs(name: str, fields: Mapping[str, Any]) -> tuple[DefenseConfig, DefenseConfig]:
    """Return the configs of the scan and of the guard; ``guard: {detector: NAME, ...}``, by default ``psim``."""
    given = fields_of(name, ("abl", "guard"), fields)
    detector = str(given["guard"].pop("detector", "psim"))
    if detector not in detectors.available():
        raise ConfigError(
            f"defenses: {name}: no detector {detector!r}; there are {listed(detectors.available())}"
        )
    scan: DefenseConfig = defenses.load("abl").config_type.from_dict(given["abl"])
    guard: DefenseConfig = detectors.load(detector).config_type.from_dict(given["guard"])
    return scan, guard


def scan_and_guard(site: Site, scan: DefenseConfig, guard: DefenseConfig) -> Made:
    """Let ABL judge the rows, train undefended on those it does not flag, and put a guard in front."""
    judged = scan_data(site.rows.train, method=scan, model=site.model, settings=site.settings)
    found = Found(judged.suspicion.astype(np.float64), judged.flagged, {"verdict": judged.verdict})
    defense = {"name": SCAN_AND_GUARD, "config": {"abl": scan.to_dict()}}
    made = Made.of(train_without(site, found, defense))
    front = site.guarded(made.model, made.tokenizer, guard)
    return replace(made, guard=front, manifest={"pipeline": [judged.manifest, made.manifest, front.manifest]})
