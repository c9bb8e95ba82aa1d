"""What a model folder may hold before another library loads it: code, names and numbers that come with somebody's model.

transformers and peft trust what they load. A configuration of a kilobyte can ask them for a terabyte, name a repository
whose kernels are to be run, or another one to be fetched. So they are shown only folders that have passed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asepsis.core.weights.files import Checkpoint
from asepsis.core.weights.folders import ADAPTER, CONFIG, inside, read_object
from asepsis.core.weights.headers import StoredTensor, read_header
from asepsis.core.weights.patterns import cost
from asepsis.core.weights.tokenizers import admit_tokenizer
from asepsis.data.values import shown
from asepsis.errors import ModelError

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# everything a library reads on the way to a model, whatever else lies in the folder
_SETTINGS = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)
_LAYERS = {
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
}
# counts of what is made one by one, and of anything else
_EXPERTS, _COUNT = re.compile(r"(num|n)_.*experts.*"), re.compile(r"(num|n)_.*")
_MOST_EXPERTS, _MOST_OF_ANYTHING = 1 << 12, 1 << 20
#: Classes of a model: a library writes a name for each before it looks at the head.
MOST_LABELS = 1 << 16
# settings of an adapter that make peft import a module, ask for other models or repeat layers
_FOREIGN = ("megatron_config", "layer_replication", "arrow_config", "tokenizer_kwargs", "auto_mapping")
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
_KEYED = ("rank_pattern", "alpha_pattern")
_MOST_SCALE = 10**6
# letters of a module's name; steps that an adapter's patterns may take together at one of them
_LONG_NAME, _MOST_WORK = 100, 4 * 100**4


def admit(folder: Path) -> Checkpoint:
    """Check a checkpoint's folder, and return it opened.

    Raises
    ------
    ModelError
        It holds no whole safetensors checkpoint, links out of itself, names a repository for its kernels or other weights
        than its own, or its numbers do not belong to its weights.
    """
    checkpoint = Checkpoint.open(folder, quantized=True)
    _check_links(folder)
    for name in _SETTINGS:
        read_object(folder, name)
    _check_names(folder, checkpoint.config)
    _check_counts(folder, checkpoint)
    admit_tokenizer(folder)
    return checkpoint


def admit_adapter(folder: Path) -> dict[str, Any]:
    """Check a PEFT adapter's folder, and return its settings.

    Raises
    ------
    ModelError
        Its weights are not safetensors, its settings name code, other models or patterns that could take for ever, or
        ranks that none of its tensors has.
    """
    _check_links(folder)
    settings = read_object(folder, ADAPTER)
    if not settings:
        raise ModelError(f"{folder} has no {ADAPTER}, or an empty one; name a folder that peft wrote")
    weights = inside(folder, ADAPTER_WEIGHTS)
    if not weights.is_file():  # peft would ask the hub for it, or read a pickle
        raise ModelError(f"{folder} has {ADAPTER} but no {ADAPTER_WEIGHTS}; a pickle is not read")
    foreign = [name for name in _FOREIGN if settings.get(name)]
    if settings.get("peft_type") == "XLORA":
        foreign.append("adapters")
    if settings.get("prompt_tuning_init") == "TEXT":
        foreign.append("prompt_tuning_init")
    if foreign:
        raise ModelError(
            f"{folder}: {ADAPTER} sets {foreign[0]}, by which an adapter can bring in code, other models or layers without "
            "end; it is not followed"
        )
    check_scales(folder, settings)
    _check_patterns(folder, settings)
    _check_ranks(folder, settings, read_header(weights))
    return settings


def check_scales(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ``ModelError`` where a scale of a LoRA adapter is no ordinary number."""
    scales = settings.get("alpha_pattern")
    for scale in (settings.get("lora_alpha", 0), *(scales.values() if isinstance(scales, dict) else ())):
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) < _MOST_SCALE:
            raise ModelError(
                f"{folder}: lora_alpha must be a number below {_MOST_SCALE:,}, got {shown(scale)}"
            )


def _check_links(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_symlink():
            inside(folder, entry.name)


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every single value of a configuration with the name it stands under, nested ones too."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(k), v) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v) for v in value]
        else:
            yield key, value


def _check_names(folder: Path, config: dict[str, Any]) -> None:
    kernels = {k: v for k, v in config.items() if k.endswith("_implementation") or "_implementation_" in k}
    text = config.get("text_config")
    if isinstance(text, dict):
        kernels |= {f"text_config.{k}": v for k, v in text.items() if "_implementation" in k}
    for key, value in kernels.items():
        for _, name in _walk(value):
            if isinstance(name, str) and "/" in name:
                raise ModelError(
                    f"{folder / CONFIG}: {key} names the repository {name!r}, whose code would run; it is not fetched. "
                    "Remove the setting"
                )
    if (named := config.get("transformers_weights")) is not None:
        raise ModelError(
            f"{folder / CONFIG}: transformers_weights names other weights, {named!r}; remove the setting"
        )


def _check_counts(folder: Path, checkpoint: Checkpoint) -> None:
    named = checkpoint.config.get("id2label")
    if isinstance(named, dict) and len(named) > MOST_LABELS:
        raise ModelError(
            f"{folder / CONFIG}: id2label names {len(named):,} classes, {MOST_LABELS:,} at most are taken"
        )
    for key, value in _walk(checkpoint.config):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        most = _MOST_EXPERTS if _EXPERTS.fullmatch(key) else _MOST_OF_ANYTHING
        if key in _LAYERS:
            most = len(checkpoint.tensors)
        elif key == "num_labels":
            most = MOST_LABELS
        if (key in _LAYERS or _COUNT.fullmatch(key)) and value > most:
            raise ModelError(
                f"{folder / CONFIG}: {key} is {_short(value)}, and the folder holds {len(checkpoint.tensors):,} tensors; its "
                "configuration belongs to other weights"
            )
        if not -(2**63) <= value < 2**63:
            raise ModelError(f"{folder / CONFIG}: {key} is {_short(value)}, which is no number of anything")


def _patterns(settings: dict[str, Any]) -> Iterator[str]:
    for name in _PATTERNS:
        value = settings.get(name)
        # a list is compared name by name, except the names of layers, which peft makes patterns of
        if isinstance(value, str):
            yield value
        elif name == "layers_pattern" and isinstance(value, list):
            yield from (v for v in value if isinstance(v, str))
    for name in _KEYED:
        value = settings.get(name)
        if isinstance(value, dict):
            yield from value


def _check_patterns(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse regular expressions that could take for ever, one of them or all: peft tries each on every module's name."""
    work = 0
    for pattern in _patterns(settings):
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(
                f"{folder}: {ADAPTER} has the pattern {pattern[:60]!r}, which is none: {error}"
            ) from error
        try:
            found = cost(pattern)
        except ValueError as error:
            raise _endless(folder, pattern, str(error)) from error
        work += _LONG_NAME**found.loops * 2**found.choices
        if work > _MOST_WORK:
            raise _endless(folder, pattern, f"it tries {found.loops} repeats and {found.choices} choices")


def _endless(folder: Path, pattern: str, why: str) -> ModelError:
    return ModelError(
        f"{folder}: {ADAPTER} has the pattern {pattern[:60]!r}, which could take for ever: {why}; name the modules in a list"
    )


def _check_ranks(folder: Path, settings: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    """Refuse sizes that nothing stored has: peft makes room for them before it looks at the file."""
    if odd := [t for t in tensors.values() if ".lora_" in t.name and not t.floating]:
        raise ModelError(
            f"{folder}: {odd[0].name} is {odd[0].dtype}, wanted floats; download the adapter again"
        )
    longest = max((max(t.shape, default=1) for t in tensors.values()), default=1)
    ranks = settings.get("rank_pattern")
    named = [("r", settings.get("r")), *(ranks.items() if isinstance(ranks, dict) else ())]
    named += [(key, settings.get(key)) for key in ("num_virtual_tokens", "init_r", "target_r")]
    named += [(key, settings.get(key)) for key in ("encoder_hidden_size", "encoder_num_layers", "token_dim")]
    for key, value in named:
        # a prompt's encoder is not stored, so nothing in the file tells its width
        most = max(longest, 4096) if key.startswith("encoder") else longest
        if isinstance(value, int) and value > most:
            raise ModelError(
                f"{folder}: {ADAPTER} says {key} = {_short(value)}, and no tensor of {ADAPTER_WEIGHTS} is longer than "
                f"{longest:,}; the two do not belong together"
            )


def _short(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**18 else "a number of more than 18 digits"
