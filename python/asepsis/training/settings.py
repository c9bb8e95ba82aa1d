"""What the user decides about training, whatever the defense: the plain loop's counterpart of TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass

from asepsis.errors import ConfigError
from asepsis.training.forward import Precision


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the plain loop. Defaults are those of fine-tuning a small encoder.

    Attributes
    ----------
    epochs : float
        Passes over the rows in an ordinary training.
    max_steps : int or None
        Optimizer steps instead of epochs.
    batch_size, accumulation : int
        Rows per micro-batch and micro-batches per optimizer step.
    eval_batch_size : int
        Rows per batch where no gradient is needed.
    learning_rate : float
        Peak of AdamW's rate; it decays linearly to zero.
    weight_decay, max_grad_norm : float
        AdamW's decay, and the norm gradients are clipped to (0 for never).
    max_length : int
        Tokens kept of each row; never more than the model has positions for. Where a prompt and its response have no room
        together, neither leaves the other less than half.
    precision : {"auto", "fp32", "bf16"}
        Autocast type; ``"auto"`` takes bf16 where the device multiplies it natively.
    device : str
        ``"auto"`` takes a CUDA device if there is one.
    seed : int
        Of batch order, dropout and new heads.
    """

    epochs: float = 2.0
    max_steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    eval_batch_size: int = 128
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 128
    precision: Precision = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "accumulation",
            "eval_batch_size",
            "learning_rate",
            "max_length",
        ):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} must be positive, got {value!r}")
        for name in ("weight_decay", "max_grad_norm", "seed"):
            value = getattr(self, name)
            if not value >= 0:
                raise ConfigError(f"{name} must not be negative, got {value!r}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, got {self.max_steps!r}")
