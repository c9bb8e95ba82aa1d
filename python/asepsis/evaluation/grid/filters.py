"""Throw rows out, train on the rest: what the row baselines share, and the pipeline that ends with a guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from asepsis.core.phases import Acted, Outcome, Script, Train
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import DefenseInert
from asepsis.evaluation.baselines import (
    CubeConfig,
    DedupConfig,
    Found,
    GracefulConfig,
    ZscoreConfig,
    by_clusters,
    by_gradients,
    by_repeats,
    by_words,
)
from asepsis.evaluation.baselines._hidden import pooled_states
from asepsis.evaluation.grid.site import Made, Site
from asepsis.training import Run, run_script
from asepsis.training.models import load_for, load_trained


@dataclass(frozen=True)
class Filter:
    """A baseline that throws rows out.

    Attributes
    ----------
    config_type : type
    find : callable
        Judges the untrusted rows of a site.
    reads_undefended : bool
        It reads the undefended model, whose training is then part of what it costs.
    packages : callable
        The modules beyond asepsis's own that it needs, by its config.
    """

    config_type: type[DefenseConfig]
    find: Callable[[Site, Any], Found]
    reads_undefended: bool = False
    packages: Callable[[Any], tuple[str, ...]] = lambda config: ()


def filter_and_train(site: Site, name: str, config: DefenseConfig) -> Made:
    """Judge the rows by a filter and train on those it leaves.

    Raises
    ------
    DefenseInert
        It leaves none.
    """
    found = FILTERS[name].find(site, config)
    return Made.of(train_without(site, found, {"name": name, "config": config.to_dict()}))


def train_without(site: Site, found: Found, defense: dict[str, Any]) -> Run:
    """Train on the rows that are not flagged; the run's outcome says what was found."""
    if found.flags.all():
        raise DefenseInert(f"{defense['name']} throws out every row; nothing is left to train on")
    ids = site.rows.train.sample_ids

    def script() -> Script:
        trained = yield Train(name="train on the rest", rows=ids[~found.flags])
        return Outcome(
            acted=Acted(samples=len(ids), steps=trained.steps),
            flagged=ids[found.flags],
            suspicion=found.suspicion.astype(np.float32),
            report={**found.report, "loss": trained.loss},
        )

    return run_script(
        site.model, site.rows.train, lambda *_: script(), defense=defense, settings=site.settings
    )


def _zscore(site: Site, config: ZscoreConfig) -> Found:
    suspicion, flags = by_words(site.rows.train, bar=config.bar)
    return Found(suspicion, flags)


def _dedup(site: Site, config: DedupConfig) -> Found:
    return by_repeats(site.rows.train)


def _cube(site: Site, config: CubeConfig) -> Found:
    rows = site.rows.train
    network, tokenizer = load_trained(site.undefended())
    states = pooled_states(network, tokenizer, rows, max_length=site.settings.max_length)
    assert rows.labels is not None  # pooled_states refuses rows without
    return by_clusters(states, rows.labels, config, seed=site.settings.seed)


def _graceful(site: Site, config: GracefulConfig) -> Found:
    network, tokenizer = load_for(site.rows.train, site.model, seed=site.settings.seed)
    return by_gradients(network, tokenizer, site.rows.train, config, max_length=site.settings.max_length)


_SKLEARN = "sklearn.cluster"
FILTERS: Mapping[str, Filter] = {
    "zscore": Filter(ZscoreConfig, _zscore),
    "dedup": Filter(DedupConfig, _dedup),
    "cube": Filter(
        CubeConfig,
        _cube,
        reads_undefended=True,
        packages=lambda config: (_SKLEARN, "umap") if config.reduction == "umap" else (_SKLEARN,),
    ),
    "graceful": Filter(GracefulConfig, _graceful, packages=lambda config: (_SKLEARN,)),
}
"""The baselines that throw rows out, by the kind of their entry."""
