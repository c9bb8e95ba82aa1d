"""Several defenses in a row: weights are repaired first, then trained on untrusted data, then guarded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asepsis.core.folders import whole_folder
from asepsis.core.manifest import MANIFEST, check_writable, read_manifest, write_manifest
from asepsis.core.weights.folders import ADAPTER
from asepsis.defenses.base import Defense, DefenseConfig
from asepsis.errors import ConfigError, MissingReference
from asepsis.inference.fitting import named
from asepsis.inference.guard import Guard
from asepsis.training import Run, defend
from asepsis.training import build as built
from asepsis.training.driver import Progress, silent
from asepsis.training.export import export_folder
from asepsis.training.models import load_trained
from asepsis.training.processes import check_alone
from asepsis.training.purify import Purified, purify
from asepsis.training.settings import Settings

Choice = str | DefenseConfig

_MOMENTS = ("after download", "while training", "at inference")


@dataclass(frozen=True)
class Step:
    """One defense of a pipeline.

    Attributes
    ----------
    name : str
    choice : str or config
        As it was given.
    moment : int
        0 repairs a finished model, 1 acts while it is trained, 2 answers beside it.
    needs : tuple of str
        Keywords of :meth:`Pipeline.run` without which it cannot act.
    cost : str
        What it takes, in a line.
    """

    name: str
    choice: Choice
    moment: int
    needs: tuple[str, ...]
    cost: str


@dataclass(frozen=True)
class Result:
    """What a pipeline made.

    Attributes
    ----------
    model, tokenizer
        The model after the last step that changed it.
    purified, run, guard
        What each moment gave; None where the pipeline has no step for it.
    """

    model: Any
    tokenizer: Any
    purified: Purified | None
    run: Run | None
    guard: Guard | None
    _saved: TemporaryDirectory[str] | None = None  # what the guard was fitted on, as it will be saved

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model as its last step saves it, the guard into ``guard`` below it, and one manifest of all steps.

        An adapter trained on repaired weights is merged into them: its base exists nowhere else. The guard says that its
        model is this folder, so ``Guard.load(folder / "guard")`` finds it there; where no step changed the model none is
        saved, and the guard goes on naming the one that was given.

        Returns
        -------
        Path
            The folder, which appears whole or not at all.
        """
        target = Path(folder)
        check_writable(target)
        with whole_folder(target) as scratch:
            if self._saved is not None:
                shutil.copytree(self._saved.name, scratch, dirs_exist_ok=True)
            else:
                _write_model(scratch, self.purified, self.run)
            manifest = read_manifest(scratch) if (scratch / MANIFEST).is_file() else {}
            if self.guard is not None:
                if self.purified is not None or self.run is not None:
                    self.guard.manifest["model"] = str(target.resolve())
                self.guard.save_pretrained(scratch / "guard")
            steps = [part.manifest for part in (self.purified, self.run) if part is not None]
            write_manifest(scratch, {**manifest, "pipeline": steps})
        return target


def _write_model(folder: Path, purified: Purified | None, run: Run | None) -> None:
    """Put what the last step saves into an empty folder; nothing where no step changed the model."""
    last = run or purified
    if last is None:
        return
    saved = last.save_pretrained(folder / "saved")
    if purified is not None and (saved / ADAPTER).is_file():
        merged = export_folder(saved, folder / "merged", merge=True)
        shutil.rmtree(saved)
        saved = merged
    for file in sorted(saved.iterdir()):
        file.rename(folder / file.name)
    saved.rmdir()


class Pipeline:
    """Defenses of different threats, in an order that is checked when it is built.

    Parameters
    ----------
    defenses : sequence of str or config
        In the order they act: any of those that repair weights (``epur``, ``finemixing``), at most one that acts while
        the model is trained on untrusted data (``abl``, ``btu``, ``musclelora``), at most one that guards
        (``psim``).

    Raises
    ------
    ConfigError
        The order cannot work, a defense is named twice, or two of them would each train the model anew.

    Examples
    --------
    >>> plan = Pipeline(["epur", "musclelora", "psim"])
    >>> print(plan.explain())  # doctest: +SKIP
    """

    def __init__(self, defenses: Sequence[Choice]) -> None:
        if isinstance(defenses, (str, DefenseConfig)) or not defenses:
            raise ConfigError(f"a pipeline is a list of defenses, got {defenses!r}")
        self.steps = tuple(_step(choice) for choice in defenses)
        names = [step.name for step in self.steps]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{', '.join(twice)} is named twice; once is enough")
        in_order = sorted(self.steps, key=lambda step: step.moment)
        if list(self.steps) != in_order:
            raise ConfigError(
                f"{' -> '.join(names)} cannot work: what repairs weights comes before training, which would put the "
                f"backdoor's work into new weights, and a guard is fitted to the finished model; use "
                f"{' -> '.join(step.name for step in in_order)}"
            )
        for moment, what in ((1, "each train the model from its start"), (2, "each guard it")):
            several = [step.name for step in self.steps if step.moment == moment]
            if len(several) > 1:
                raise ConfigError(f"{' and '.join(several)} {what}: take one of them")

    @property
    def needs(self) -> tuple[str, ...]:
        """Everything :meth:`run` has to be given beside the model."""
        return tuple(sorted({need for step in self.steps for need in step.needs}))

    def explain(self) -> str:
        """Return a table: which step acts when, what it needs, what it costs."""
        lines = [f"needs: {', '.join(('model', *self.needs))}"]
        for number, step in enumerate(self.steps, start=1):
            needs = ", ".join(step.needs) or "nothing more"
            lines.append(f"{number}. {step.name:<11} {_MOMENTS[step.moment]:<15} needs {needs}")
            lines.append(f"   cost: {step.cost}")
        return "\n".join(lines)

    def run(
        self,
        model: str | Path,
        data: Any = None,
        *,
        base: str | Path | None = None,
        clean: Any = None,
        clean_reference: Any = None,
        counts: str | Path | Mapping[Any, float] | None = None,
        corpus: Sequence[str] | None = None,
        settings: Settings | None = None,
        tuning: Settings | None = None,
        target_fpr: float = 0.01,
        progress: Progress = silent,
    ) -> Result:
        """Carry out all steps. What any of them needs is asked for before the first begins.

        Parameters
        ----------
        model : str or Path
            Where it starts: the downloaded model.
        data : as data, optional
            Untrusted rows to train on.
        base, clean, counts, corpus
            As for :func:`asepsis.purify`. ``clean`` rows fit the guard as well.
        clean_reference
            As for :func:`asepsis.defend`.
        settings, tuning : Settings, optional
            Of the training, and of the tuning after a repair.
        target_fpr : float
            Wanted share of clean inputs that the guard flags.
        progress : callable, optional
            Called with ``(phase, done, of)``.

        Returns
        -------
        Result

        Raises
        ------
        MissingReference
            A step needs something that was not given; all of them are named.
        BackendError
            There are several processes.
        """
        check_alone("a pipeline")
        given = {"data": data, "base": base, "clean": clean, "clean_reference": clean_reference}
        missing = [
            f"{step.name} needs {need}"
            for step in self.steps
            for need in step.needs
            if given.get(need) is None
        ]
        if missing:
            raise MissingReference(f"{'; '.join(missing)}; pass it to Pipeline.run()")
        repairs, trains, guards = ([s for s in self.steps if s.moment == moment] for moment in range(3))
        purified = run = guard = None
        if repairs:
            purified = purify(
                model,
                base=base,
                defense=[step.choice for step in repairs],
                clean=clean,
                counts=counts,
                corpus=corpus,
                settings=tuning,
                progress=progress,
            )
        if trains:
            run = defend(
                model if purified is None else purified.folder,
                data,
                defense=trains[0].choice,
                clean_reference=clean_reference,
                settings=settings,
                progress=progress,
            )
        saved = None
        if guards and (purified is not None or run is not None):
            # a guard knows its model by names and values: those that will be loaded again, not those of the training
            saved = TemporaryDirectory(prefix="asepsis-")
            _write_model(Path(saved.name), purified, run)
            network, tokenizer = load_trained(saved.name)
        elif run is not None:
            network, tokenizer = run.model, run.tokenizer
        else:
            network, tokenizer = load_trained(model) if purified is None else purified.loaded
        if guards:
            guard = Guard.fit(
                network,
                clean,
                detector=guards[0].choice,
                target_fpr=target_fpr,
                processing_class=tokenizer,
                seed=(settings or Settings()).seed,
                max_length=(settings or Settings()).max_length,
                progress=progress,
            )
            if saved is None:  # a network with an adapter calls itself by its base
                guard.manifest["model"] = named(model)
        return Result(network, tokenizer, purified, run, guard, saved)


def _step(choice: Choice) -> Step:
    defense = built(choice)
    kind = type(defense)
    if kind.repair is not Defense.repair:
        moment = 0
    elif kind.script is not Defense.script:
        moment = 1
    else:
        moment = 2
    needs = {*defense.needs, *({"data"} if moment == 1 else ())}
    return Step(defense.name, choice, moment, tuple(sorted(needs)), kind.cost)
