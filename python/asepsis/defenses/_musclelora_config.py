"""Settings of MuScleLoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asepsis.core.alignment import BelowGate, Passes
from asepsis.core.lora import Init
from asepsis.defenses._abl_config import AblConfig
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError
from asepsis.kernels import Granularity, Rule


@dataclass(frozen=True, kw_only=True)
class MuscleloraConfig(DefenseConfig):
    """Settings of MuScleLoRA. Both values of what the authors' code decides silently are options here.

    Attributes
    ----------
    placement : {"paper", "all-linear"}
        LoRA on queries and values with one multi-scale layer before the output layer, or a multi-scale branch on
        every linear layer of the body.
    adapters : {"lora+multiscale", "lora", "multiscale", "none"}
        Which branches; ``"none"`` trains all weights. For ablations.
    align : bool
        Whether gradients are aligned; off for ablations and controls.
    rank, alpha : int, float
        Of LoRA; 8 and 32 in the paper for encoders, 2 and 8 for decoders.
    scale_rank, scale_alpha : int, float
        Of each scale of a multi-scale branch; 1 and 6 in the authors' code for encoders, 1 and 4 for decoders.
    scales : tuple of float or "auto"
        ``"auto"`` takes the authors' for BERT, RoBERTa, GPT-2 and Llama architectures, and raises for others.
    lora_modules, multiscale_modules : tuple of str or "auto"
        Ends of qualified layer names, where the placement's own choice is not wanted.
    init : {"zero", "reference"}
        Start of the multi-scale branch: at the pretrained function, or the authors' random one.
    head : {"trained", "frozen"}
        Whether a classifier's output weight is trained; the authors freeze a random one.
    rule : {"reflect", "drop", "signed", "conflict"}
        ``"reflect"`` is the paper's: the projection on the clean gradient, its sign forced positive. ``"drop"`` keeps
        agreeing projections only, ``"signed"`` the projection as it is, ``"conflict"`` removes only what conflicts.
    granularity : {"tensor", "global"}
        Whether each tensor is projected for itself, as in the paper, or all together.
    reference_batch_size : int
        Reference rows per step.
    min_reference_loss : float
        Gate in nats: above it the gradient is replaced, below it ``below_gate`` or blending decides. 0.4 in the
        authors' code for encoders, 0 for decoders.
    first_blend_epoch : int
        Epochs, from 0, before which nothing is blended; 1 in the authors' code for encoders.
    max_raw_weight : float
        Up to which weight the raw gradient is blended in below the gate; 0.1 in the authors' code for encoders.
    below_gate : {"raw", "align"}
        What happens below the gate before blending; the authors' code takes the raw gradient.
    passes : {"auto", "one", "two"}
        Both gradients from one concatenated pass or from two.
    epochs : float or None
        Passes over the rows; None means the user's.
    learning_rate_scale : float
        Factor on the user's learning rate: low-rank layers want about ten times the rate of all weights.
    auto_reference_rows : int
        Rows taken for clean where ``clean_reference="auto"``, at most half of each class.
    """

    placement: Literal["paper", "all-linear"] = "paper"
    adapters: Literal["lora+multiscale", "lora", "multiscale", "none"] = "lora+multiscale"
    align: bool = True
    rank: int = 8
    alpha: float = 32.0
    scale_rank: int = 1
    scale_alpha: float = 6.0
    scales: tuple[float, ...] | Literal["auto"] = "auto"
    lora_modules: tuple[str, ...] | Literal["auto"] = "auto"
    multiscale_modules: tuple[str, ...] | Literal["auto"] = "auto"
    init: Init = "zero"
    head: Literal["trained", "frozen"] = "trained"
    rule: Rule = "reflect"
    granularity: Granularity = "tensor"
    reference_batch_size: int = 32
    min_reference_loss: float = 0.4
    first_blend_epoch: int = 1
    max_raw_weight: float = 0.0
    below_gate: BelowGate = "align"
    passes: Passes = "auto"
    epochs: float | None = None
    learning_rate_scale: float = 10.0
    auto_reference_rows: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "scale_rank", "reference_batch_size", "auto_reference_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        for name in ("alpha", "scale_alpha", "learning_rate_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("min_reference_loss", "first_blend_epoch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs must be positive and finite, got {self.epochs!r}")
        if not 0 <= self.max_raw_weight <= 1:
            raise ConfigError(f"max_raw_weight must lie in [0, 1], got {self.max_raw_weight!r}")
        if self.adapters == "none" and not self.align:
            raise ConfigError("adapters='none' without alignment is plain training: use defense='none'")
        if self.scales != "auto" and not (self.scales and all(0 < s < math.inf for s in self.scales)):
            raise ConfigError(f"scales must be 'auto' or positive numbers, got {self.scales!r}")

    @property
    def probe(self) -> AblConfig:
        """Settings of the probe that chooses clean rows."""
        return AblConfig(snapshots=(20, 40))
