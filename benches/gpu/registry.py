"""The benches ``python -m benches.gpu`` runs, in this order. A new one is a module with ``verify`` and ``cases``, and a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bench:
    """``seconds`` is its share of the eight minutes; a case begun in time is finished."""

    name: str
    module: str
    seconds: float
    about: str


BENCHES: tuple[Bench, ...] = (
    Bench(
        name="lora_routes",
        module="benches.gpu.lora_routes",
        seconds=90,
        about="calibration: every route, product and host call by itself; what the dispatcher goes by",
    ),
    Bench(
        name="multiscale_lora",
        module="benches.gpu.multiscale_lora",
        seconds=170,
        about="one layer against PEFT's loop, PEFT as shipped, torch.compile, stacked torch and the frozen layer",
    ),
    Bench(
        name="alignment",
        module="benches.gpu.alignment",
        seconds=60,
        about="gradient_alignment against foreach and the loop over tensors",
    ),
    Bench(
        name="sample_loss",
        module="benches.gpu.sample_loss",
        seconds=100,
        about="linear_sample_loss against losses from logits: memory, time",
    ),
    Bench(
        name="training_step",
        module="benches.gpu.training_step",
        seconds=50,
        about="a whole MuScleLoRA step of a Llama with 1.2 billion parameters",
    ),
)
