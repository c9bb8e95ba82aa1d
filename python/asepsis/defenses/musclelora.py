"""MuScleLoRA: learn at several scales at once, and only what clean rows agree with.

Wu, Zhang, Cheng, Liu: *Acquiring Clean Language Models from Backdoor Poisoned Datasets by Downscaling Frequency Space*,
ACL 2024.

The idea: a backdoor is a mapping of low frequency and is learned before the task. Low-rank layers limit what can be
learned; multiplying them by several scales moves the task's mapping towards low frequencies as well; and every
step's gradient is replaced by its projection on the gradient of a few clean reference rows.

Deviations from the paper
-------------------------
* *The branch starts at zero and the output layer is trained.* The authors' code starts the multi-scale layer far from
  the pretrained one and freezes a random output layer, without saying so; both are options here (``init``, ``head``).
* *A decoder's classification head is made multi-scale itself*, where the authors put a second linear layer beside it
  with nothing in between. A causal LM, which they do not treat, has its last block's last linear layer.
* *The reference batch runs over all reference rows* before any comes again, instead of a fresh draw each step, and is
  divided among the micro-batches of a step; the gradient is aligned once, over the whole step and all ranks. The
  authors' code aligns an accumulated, already aligned gradient again.
* *Below the gate the gradient can be aligned as well* (``below_gate="align"``, the default): the authors' code takes
  the raw gradient there in the first epoch, which defends nothing while the backdoor is learned.

When not to trust it
--------------------
With many clean rows a model trained on these rows alone can do as well; with few rows, or rows that do not cover the
task, accuracy falls. Run the control: the same adapters on the reference rows alone. Poison that is correctly labeled
text agrees with the clean gradient and passes. See ``docs/results/musclelora.md`` for where it works and where not.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import numpy as np

from asepsis.core.alignment import Alignment
from asepsis.core.lora import Branch, insert, layers
from asepsis.core.phases import Acted, Outcome, Remember, Request, Restore, Script, Train, Trained, Weights
from asepsis.core.placement import (
    attention,
    before_head,
    body,
    head_of,
    matching,
    output_linear,
    preset_scales,
)
from asepsis.data import Data
from asepsis.defenses._musclelora_config import MuscleloraConfig
from asepsis.defenses.abl import Abl
from asepsis.defenses.base import Defense, Paper, Threat
from asepsis.errors import ConfigError, DefenseInert, ModelError

log = logging.getLogger("asepsis")


class Musclelora(Defense[MuscleloraConfig]):
    """Multi-scale low-rank adaptation with gradient alignment. The module's docstring says what differs."""

    paper = Paper(
        title="Acquiring Clean Language Models from Backdoor Poisoned Datasets by Downscaling Frequency Space",
        authors="Zongru Wu, Zhuosheng Zhang, Pengzhou Cheng, Gongshen Liu",
        venue="Annual Meeting of the Association for Computational Linguistics",
        year=2024,
        arxiv="2402.12026",
    )
    threat = Threat.DATA
    needs = frozenset({"clean_reference"})
    config_type = MuscleloraConfig
    cost = "each step trains on as many clean rows beside its batch: about twice a step of plain LoRA"

    def script(self, model: Any, data: Data) -> Script:
        """Put the branches in, train under alignment."""
        c = self.config
        if c.adapters != "none" and hasattr(model, "peft_config"):
            raise ConfigError("musclelora brings its own adapters: give it the base model and no peft_config")
        if c.adapters != "none" and any(True for _ in layers(model)):
            raise ModelError("the model has multi-scale layers already; fold or remove them first")
        branches = self.branches(model)  # what does not fit the model shows before anything is trained
        if not c.align:
            log.warning(
                "musclelora: align=False trains the layers undefended; it is for ablations and controls"
            )
        reference, chosen = (yield from self._reference(model, data)) if c.align else (None, {})
        if branches:
            insert(model, branches)
        trained: Trained = yield Train(
            name="train under alignment" if c.align else "train",
            epochs=c.epochs,
            learning_rate_scale=c.learning_rate_scale,
            alignment=None if reference is None else self._alignment(reference),
        )
        report = {
            "branches": _summary(branches),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "reference": None
            if reference is None
            else {"rows": len(reference), "source": reference.source, **chosen},
            "alignment": trained.alignment,
            "loss": trained.loss,
        }
        return Outcome(acted=Acted(samples=len(data), steps=trained.steps), report=report)

    def branches(self, model: Any) -> dict[str, Branch]:
        """Return which layer of ``model`` gets which branch, in the model's order."""
        c = self.config
        if c.adapters == "none":
            return {}
        low_rank = Branch(rank=c.rank, alpha=c.alpha)
        scales = preset_scales(model) if c.scales == "auto" else tuple(float(s) for s in c.scales)
        several = Branch(rank=c.scale_rank, alpha=c.scale_alpha, scales=scales, init=c.init)
        chosen: dict[str, Branch] = {}
        if c.placement == "all-linear":
            names = body(model) if c.multiscale_modules == "auto" else matching(model, c.multiscale_modules)
            chosen = dict.fromkeys(names, low_rank if c.adapters == "lora" else several)
        else:
            if c.adapters != "multiscale":
                names = attention(model) if c.lora_modules == "auto" else matching(model, c.lora_modules)
                chosen |= dict.fromkeys(names, low_rank)
            if c.adapters != "lora":
                auto = c.multiscale_modules == "auto"
                names = [before_head(model)] if auto else matching(model, tuple(c.multiscale_modules))
                chosen |= dict.fromkeys(names, several)
        output = output_linear(model)
        if c.head == "trained" and head_of(model)[0] in ("classifier", "score") and output not in chosen:
            chosen[output] = Branch(full=True)
        order = {name: i for i, (name, _) in enumerate(model.named_modules())}
        return dict(sorted(chosen.items(), key=lambda item: order[item[0]]))

    def _alignment(self, reference: Data) -> Alignment:
        c = self.config
        return Alignment(
            reference=reference,
            batch_size=c.reference_batch_size,
            rule=c.rule,
            granularity=c.granularity,
            min_reference_loss=c.min_reference_loss,
            first_blend_epoch=c.first_blend_epoch,
            max_raw_weight=c.max_raw_weight,
            below_gate=c.below_gate,
            passes=c.passes,
        )

    def _reference(self, model: Any, data: Data) -> Generator[Request, Any, tuple[Data, dict[str, Any]]]:
        """Return the clean rows: those given, or the least suspicious of the data after a short ABL probe."""
        given = self.given.clean_reference
        if isinstance(given, Data):
            return given, {"chosen_by": "user"}
        start: Weights = yield Remember()
        probe = yield from Abl(self.config.probe).scan(model, data, np.empty(0, np.int64))
        yield Restore(weights=start)
        if probe.suspicion is None:
            raise DefenseInert("the probe judged no row, so no row can be taken for clean")
        wanted = self.config.auto_reference_rows
        picked = _least_suspicious(data, probe, wanted)
        if len(picked) == 0:
            raise DefenseInert("the probe flagged every row, so no row can be taken for clean")
        log.warning(
            "musclelora: clean_reference='auto' ASSUMES that %d rows are clean because a short ABL probe (verdict %s) "
            "finds them least suspicious; poison it does not see will be taken for clean",
            len(picked),
            probe.report.get("verdict"),
        )
        if data.labels is not None and len(lacking := np.setdiff1d(data.labels, data.labels[picked])):
            log.warning(
                "musclelora: every row of class %s was flagged; the reference has none", lacking.tolist()
            )
        return data.select(picked), {"chosen_by": "abl probe", "probe_verdict": probe.report.get("verdict")}


def _least_suspicious(data: Data, probe: Outcome, wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return positions of the least suspicious rows, as many of each class; flagged rows never.

    At most half of what there is of a class: all rows of a small data set would be the poison too.
    """
    assert probe.suspicion is not None
    usable = ~np.isin(data.sample_ids, probe.flagged)
    order = np.argsort(probe.suspicion, kind="stable")
    order = order[usable[order]]
    if data.labels is None:
        return np.sort(_spread(order, wanted))
    classes = np.unique(data.labels)
    each = max(1, wanted // len(classes))
    return np.sort(np.concatenate([_spread(order[data.labels[order] == label], each) for label in classes]))


def _spread(rows: np.ndarray[Any, np.dtype[np.int64]], wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return rows at even distances from the first half: the very first alone are no fair sample of the task."""
    half = rows[: -(-len(rows) // 2)]
    at = np.linspace(0, len(half) - 1, min(wanted, len(half))).round().astype(np.int64)
    picked: np.ndarray[Any, np.dtype[np.int64]] = half[at]
    return picked


def _summary(branches: dict[str, Branch]) -> list[dict[str, Any]]:
    """Describe the branches JSON-ready, equal ones together."""
    groups: dict[Branch, list[str]] = {}
    for name, branch in branches.items():
        groups.setdefault(branch, []).append(name)
    return [
        {"layers": names, "full": True}
        if branch.full
        else {
            "layers": names,
            "rank": branch.rank,
            "alpha": branch.alpha,
            "scales": list(branch.scales),
            "init": branch.init,
        }
        for branch, names in groups.items()
    ]
