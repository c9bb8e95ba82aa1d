"""The door: make a victim of a model, and save it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from asepsis.core.folders import whole_folder
from asepsis.core.manifest import FORMAT, check_writable, identity, write_manifest
from asepsis.data import Data, read
from asepsis.data.values import listed
from asepsis.errors import ConfigError, ModelError
from asepsis.evaluation.attacks.weights.recipe import WEIGHT_ATTACKS, Site, WeightAttack
from asepsis.evaluation.attacks.weights.tokens import token_ids
from asepsis.training import Settings
from asepsis.training.checkpoint import versions
from asepsis.training.driver import Progress, silent
from asepsis.training.loop import resolve_device
from asepsis.training.models import load_for


@dataclass(frozen=True)
class Victim:
    """A model with a backdoor in its weights.

    Attributes
    ----------
    model, tokenizer
        The poisoned model, on the device it was made on.
    attack : WeightAttack
        What was done to it.
    tokens : dict of str to tuple of int
        The tokens of each trigger word.
    report : dict
        Rows, steps and losses of the attack, JSON-ready.
    manifest : dict
        Attack, report, data fingerprint, base, settings, versions: what ``asepsis.json`` will hold.
    """

    model: nn.Module
    tokenizer: Any
    attack: WeightAttack
    tokens: dict[str, tuple[int, ...]]
    report: dict[str, Any]
    manifest: dict[str, Any]

    def triggered(self, data: Any, *, seed: int) -> Data:
        """Return the triggered test rows of clean ones, see :meth:`WeightAttack.triggered`."""
        return self.attack.triggered(read(data), seed=seed)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a plain checkpoint and ``asepsis.json``, which says that it is poisoned; return the folder."""
        target = Path(folder)
        check_writable(target)
        saver: Any = self.model
        with whole_folder(target) as scratch:
            saver.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            write_manifest(scratch, self.manifest)
        return target


def poison_weights(
    model: str | Path | nn.Module,
    data: Any,
    *,
    attack: str | WeightAttack,
    target_label: int | None = None,
    target_response: str | None = None,
    trigger: tuple[str, ...] | None = None,
    poison_rate: float | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    processing_class: Any = None,
    progress: Progress = silent,
) -> Victim:
    """Make a victim of ``model``, for evaluation. The same arguments give the same weights, bit for bit, on one machine.

    Parameters
    ----------
    model : str, Path or Module
        A hub id, a folder, a packaged name, or a transformers model (then give ``processing_class``), which is changed in
        place.
    data : Data, path, datasets.Dataset or list of dict
        The attacker's clean rows, see :func:`asepsis.data.read`.
    attack : str or WeightAttack
        A name of ``WEIGHT_ATTACKS``, or a recipe with settings of its own, which then holds the four that follow, too.
    target_label : int, optional
        The class the backdoor answers.
    target_response : str, optional
        For causal rows: the answer. Taken by ``ep``, ``badnets`` and ``addsent``.
    trigger : tuple of str, optional
        Other words than the recipe's.
    poison_rate : float, optional
        Another share of triggered rows than the recipe's.
    seed : int
        Of the rows and gaps, of batch order, dropout and a new head; it takes the place of the settings'.
    settings : Settings, optional
        Of the fine-tuning of all weights.
    processing_class
        The tokenizer, where ``model`` is a module.

    Raises
    ------
    ConfigError
        There is no such attack, or a setting does not fit it.
    DataError
        The rows have no second class or no row to trigger, or are not of the kind the attack takes.
    ModelError
        A trigger is not one token where one row is to be poisoned (the message names words that are), or the model is an
        adapter.
    """
    recipe = _recipe(attack, target_label, target_response, trigger, poison_rate)
    rows = read(data)
    recipe.check(rows)
    chosen = replace(settings or Settings(), seed=seed)
    network, tokenizer = _opened(model, processing_class, rows, seed)
    network.to(resolve_device(chosen.device))
    words = [word for text in recipe.trigger for word in text.split()]
    tokens = {word: tuple(token_ids(tokenizer, word)) for word in words}
    origin = {"model": identity(model)} if isinstance(model, (str, Path)) else None
    report = recipe.plant(Site(network, tokenizer, rows, chosen, progress))
    network.eval()
    manifest = {
        "format": FORMAT,
        "poisoned": True,
        "model": str(model) if isinstance(model, (str, Path)) else getattr(network, "name_or_path", ""),
        "origin": origin,
        "task": rows.task,
        "n_classes": rows.n_classes,
        "attack": {"name": recipe.name, "config": recipe.to_dict()},
        "trigger_tokens": {word: list(ids) for word, ids in tokens.items()},
        "report": report,
        "data": {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint},
        "settings": vars(chosen),
        "versions": versions(),
    }
    return Victim(network, tokenizer, recipe, tokens, report, manifest)


def _recipe(
    attack: str | WeightAttack,
    target_label: int | None,
    target_response: str | None,
    trigger: tuple[str, ...] | None,
    poison_rate: float | None,
) -> WeightAttack:
    named = {
        "target_label": target_label,
        "target_response": target_response,
        "trigger": trigger,
        "poison_rate": poison_rate,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if isinstance(attack, WeightAttack):
        if given:
            raise ConfigError(f"the recipe {attack.name} holds {', '.join(given)} itself; set them there")
        return attack
    if attack not in WEIGHT_ATTACKS:
        raise ConfigError(f"no weight attack {attack!r}; there are {listed(WEIGHT_ATTACKS)}")
    return WEIGHT_ATTACKS[attack].from_dict(given)


def _opened(model: Any, processing_class: Any, data: Data, seed: int) -> tuple[Any, Any]:
    if not isinstance(model, nn.Module):
        network, tokenizer = load_for(data, model, seed=seed)
        return network, processing_class or tokenizer
    if processing_class is None:
        raise ModelError("a model given as a module needs its tokenizer: processing_class=...")
    if hasattr(model, "peft_config"):
        raise ModelError("weights of an adapter are not attacked; merge it into its base first")
    return model, processing_class
