"""DeepSpeed's ZeRO-2: optimizer and gradients are divided among processes, weights are whole in each.

Two things are in its way of a defense. The step is taken inside the last backward pass, so what a defense does to the
step's gradient is called from there; and the gradient is in parts by then, so it is put together first. After a training
the model is given back as it was: DeepSpeed moves all trained weights into one buffer, and leaves hooks and attributes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, distributed, nn

from asepsis.errors import BackendError

SUPPORTED = (
    "supported are DeepSpeed ZeRO stage 2 in float32 without offloading, DDP (torchrun, accelerate launch), and weights spread "
    "by FSDP2 (transformers' distributed_config=)"
)
#: What DeepSpeed's configuration may hold: the rest is its own optimizer and schedule, or was never tried.
_TAKEN = {
    "zero_optimization",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
_ZERO_TAKEN = {
    "stage",
    "allgather_partitions",
    "allgather_bucket_size",
    "overlap_comm",
    "reduce_scatter",
    "reduce_bucket_size",
    "contiguous_gradients",
    "offload_optimizer",
    "offload_param",
}


def uses_deepspeed(args: Any) -> bool:
    """Whether training arguments, or who launched the process, ask for DeepSpeed."""
    return bool(getattr(args, "deepspeed", None)) or getattr(args, "deepspeed_plugin", None) is not None


def check_zero(args: Any, model: nn.Module) -> None:
    """Raise ``BackendError`` where DeepSpeed is asked for anything else than ZeRO-2 as it is supported.

    Its configuration is completed by the model's width where it says ``"auto"``: a network that a defense trains for a
    while may not tell its own.
    """
    from accelerate.utils import DistributedType

    plugin = getattr(args, "deepspeed_plugin", None)
    state = getattr(args, "distributed_state", None)
    if plugin is None or getattr(state, "distributed_type", None) != DistributedType.DEEPSPEED:
        raise BackendError(
            "DeepSpeed was asked for and is not what these processes were started with: start with torchrun or accelerate "
            "launch, without use_cpu=True; without a GPU the CPU is taken by itself"
        )
    together = distributed.get_world_size() if distributed.is_initialized() else 1
    if together != args.world_size:
        raise BackendError(
            f"accelerate counts {args.world_size} process under DeepSpeed where torch has {together}, as it does without a GPU: "
            "say it by accelerate launch --use_deepspeed, not by deepspeed=, and set ddp_backend='gloo'"
        )
    config: dict[str, Any] = plugin.deepspeed_config
    zero: dict[str, Any] = config.get("zero_optimization", {})
    if zero.get("stage") != 2:
        raise BackendError(f"DeepSpeed ZeRO stage {zero.get('stage')} is not supported: {SUPPORTED}")
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device") not in (None, "none"):
            raise BackendError(f"DeepSpeed's {part} is not supported: {SUPPORTED}")
    low = [name for name in ("bf16", "fp16") if getattr(args, name, False) or _on(config, name)]
    if low or getattr(args, "mixed_precision", "no") != "no":
        raise BackendError(
            f"DeepSpeed in {low[0] if low else args.mixed_precision} turns the model's own weights into it, which is not "
            f"supported: {SUPPORTED}"
        )
    if own := sorted({"optimizer", "scheduler"} & set(config)):
        raise BackendError(
            f"DeepSpeed's own {own[0]} does not know of a defense's phases, each with a rate of its own: leave it out, and set "
            "optim, learning_rate and lr_scheduler_type of TrainingArguments"
        )
    strange = [name for name in config if name not in _TAKEN]
    strange += [
        f"zero_optimization.{name}"
        for name in zero
        if name not in _ZERO_TAKEN and not name.startswith("stage3_")
    ]
    if strange:
        raise BackendError(f"DeepSpeed with {', '.join(sorted(strange))} is not supported: {SUPPORTED}")
    _check_agreement(args, config)
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    for name, value in zero.items():
        if value == "auto" and width is not None:
            zero[name] = width * width


def _on(config: dict[str, Any], name: str) -> bool:
    return (config.get(name) or {}).get("enabled") is True


def _check_agreement(args: Any, config: dict[str, Any]) -> None:
    """Refuse numbers that differ from the training arguments', which batches, weights and clipping go by."""
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    for name, wanted, optional in (
        ("train_micro_batch_size_per_gpu", args.per_device_train_batch_size, False),
        ("gradient_accumulation_steps", args.gradient_accumulation_steps, False),
        ("train_batch_size", step, True),
        ("gradient_clipping", args.max_grad_norm, not args.max_grad_norm),
    ):
        found = config.get(name)
        if found not in ("auto", wanted) and not (optional and found is None):
            raise BackendError(
                f"DeepSpeed's {name} is {found} and TrainingArguments say {wanted}: write '{name}': 'auto'"
            )


def for_one_phase(args: Any) -> None:
    """Leave the plugin out of arguments where accelerate has it already: it is told of it once, in the first phase."""
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state.get("deepspeed_plugins") is not None:
        args.deepspeed_plugin = None


def before_step(engine: Any, do: Callable[[], None]) -> None:
    """Have something done when a step's gradient is complete, before it is clipped and the step taken."""
    step = engine.step

    def after_do(*args: Any, **kwargs: Any) -> Any:
        do()
        return step(*args, **kwargs)

    engine.step = after_do


@contextlib.contextmanager
def whole_gradients(parameters: list[nn.Parameter], into: list[Tensor] | None = None) -> Iterator[None]:
    """Put gradients together in ``.grad`` for a while, in these tensors if they are given; then divide them again.

    Every process has to enter; what is done inside has to be the same in all.
    """
    from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

    for index, parameter in enumerate(parameters):
        found = safe_get_full_grad(parameter)
        if found is None:
            raise BackendError("DeepSpeed shows no gradient of a trained tensor before its step")
        if into is not None:
            found = into[index].copy_(found)
        parameter.grad = found
    yield
    for parameter in parameters:
        value, parameter.grad = parameter.grad, None
        safe_set_full_grad(parameter, value)


@contextlib.contextmanager
def lent(trainer: Any, network: nn.Module) -> Iterator[None]:
    """Lend a network to DeepSpeed for one training, and take back what it did to it besides."""
    before = [(parameter, set(vars(parameter))) for parameter in network.parameters()]
    try:
        yield
    finally:
        engine: Any = trainer.deepspeed
        trainer.accelerator.free_memory()  # removes the hooks of gradients
        for name in ("module_forward_pre_hook", "module_forward_post_hook"):
            hook = getattr(engine, name, None)
            if hook is not None:
                hook.remove()
        for parameter, names in before:
            for name in set(vars(parameter)) - names:
                delattr(parameter, name)
            if parameter.requires_grad:
                parameter.grad = None
                parameter.data = parameter.data.clone()
