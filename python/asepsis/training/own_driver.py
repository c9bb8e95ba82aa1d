"""Trains by a trainer that somebody else made: what :func:`asepsis.defended` answers a defense's requests with."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from asepsis.core.phases import Ids, Relabel
from asepsis.data import Data
from asepsis.errors import ConfigError
from asepsis.training.collate import Collator
from asepsis.training.driver import Progress
from asepsis.training.one_phase import Phase
from asepsis.training.own_rows import OwnCollator, OwnRows
from asepsis.training.resume import Journal
from asepsis.training.trainer import TrainerDriver, refuse_launcher


class OwnDriver(TrainerDriver):
    """Answers requests with the user's own trainer, on the user's own rows.

    Attributes
    ----------
    own : dict of str to OwnRows
        Rows that the user tokenized, by their data's ``source``; others are tokenized here.
    """

    def __init__(
        self, trainer: Any, rows: OwnRows, tokenizer: Any, journal: Journal | None, *, progress: Progress
    ) -> None:
        super().__init__(
            trainer.model,
            tokenizer,
            rows.data,
            trainer.args,
            max_length=int(tokenizer.model_max_length),
            progress=progress,
            journal=journal,
        )
        refuse_launcher(trainer)
        self.trainer = trainer
        self.own = {rows.data.source: rows}

    def rows_of(
        self, data: Data, *, relabel: Relabel | None = None, drop_tokens: Ids | None = None
    ) -> Collator:
        """Return what makes batches of a data set: by the owner's collator where the rows are the owner's."""
        own = self.own.get(data.source)
        if own is None:
            return super().rows_of(data, relabel=relabel, drop_tokens=drop_tokens)
        return OwnCollator(own, data, relabel=relabel, drop_tokens=drop_tokens)

    def run_phase(self, phase: Phase, args: TrainingArguments) -> None:
        """Train one phase under the arguments made for it."""
        if phase.network is not self.model:
            args.eval_strategy = IntervalStrategy.NO  # it is thrown away
        self.trainer._train_phase(phase, args)


def check_trainer(trainer: Any) -> None:
    """Refuse what a defense could not act under, or would change in silence."""
    args = trainer.args
    refused = {
        "packing=True joins rows, and a defense tells them apart; set packing=False": getattr(
            args, "packing", False
        ),
        "padding_free=True joins rows, and a defense tells them apart; set it to False": getattr(
            trainer, "padding_free", False
        ),
        "model_init makes the model anew in every phase; pass model": trainer.model_init is not None,
        "auto_find_batch_size changes the batches under way; set a batch size": args.auto_find_batch_size,
        "load_best_model_at_end would undo the last phase; set it to False": args.load_best_model_at_end,
        "use_liger_kernel hides the logits that rows are scored by; asepsis.fuse and asepsis' own kernels run without it": (
            args.use_liger_kernel
        ),
        "label_smoothing_factor and compute_loss_func change the loss rows are told apart by; leave them out": (
            args.label_smoothing_factor or trainer.compute_loss_func is not None
        ),
        f"loss_type={getattr(args, 'loss_type', '')!r} is not the loss rows are told apart by; use 'nll'": (
            getattr(args, "loss_type", "nll") != "nll"
        ),
        "optimizers=... is one optimizer, and every phase begins with a fresh one; use args.optim": (
            trainer.optimizer is not None or trainer.lr_scheduler is not None
        ),
        "train_dataset is missing: there is nothing to defend": trainer.train_dataset is None,
        "images are not supported: defenses act on text": getattr(trainer, "_is_vision_dataset", False),
    }
    for message, holds in refused.items():
        if holds:
            raise ConfigError(f"a defended trainer cannot run so: {message}")
