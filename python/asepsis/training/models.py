"""Load a model and its tokenizer by name, folder or packaged demo name: safetensors only, no remote code."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asepsis.core.export import fresh_tensors, mark_fresh
from asepsis.core.foreign import foreign
from asepsis.core.weights.admission import MOST_LABELS, admit_adapter
from asepsis.core.weights.folders import ADAPTER, CONFIG, inside, read_object
from asepsis.core.weights.tokenizers import admit_tokenizer
from asepsis.data import Data, Task
from asepsis.data.packaged import PackagedModel, packaged_model
from asepsis.errors import ModelError
from asepsis.training.loading import check_finite, folder_of, load_admitted

log = logging.getLogger("asepsis")

_PROBE = "A word, \u00c9t\u00e9 \ufb01\u4e2d\u6587 \U0001f600 12.5\n"


def load_for(
    data: Data, name: str | Path, *, seed: int = 0, from_file: bool = False
) -> tuple[nn.Module, Any]:
    """Return ``(model, tokenizer)`` fit for training on ``data``; a new classification head is drawn from ``seed``.

    Parameters
    ----------
    name : str or Path
        A folder, a hub id, ``demo:encoder`` or ``demo:causal``; ``demo:causal:8`` takes the first 8 layers.
    from_file : bool
        The name comes from a file, not from the user: nothing is fetched for it.

    Raises
    ------
    ModelError
        If nothing can be loaded from there, or its head does not fit the number of classes.
    """
    kind = "sequence-classification" if data.task == "classification" else "causal-lm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(str(name), kind, data.n_classes, from_file=from_file)
    tokenizer = load_tokenizer(name, from_file=from_file)
    _pad(model, tokenizer)
    if data.n_classes is not None and model.config.num_labels != data.n_classes:
        raise ModelError(f"{name} has {model.config.num_labels} classes, the data has {data.n_classes}")
    return model, tokenizer


def load_trained(folder: str | Path) -> tuple[nn.Module, Any]:
    """Return a model as it was saved: a checkpoint folder, or an adapter folder with its base.

    Raises
    ------
    ModelError
        Nothing whole can be loaded from there.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"{folder} is not a folder with a saved model")
    if (path / ADAPTER).exists():
        model = _load_adapted(path)
    else:
        architectures = _architectures(path)
        causal = any("CausalLM" in a or "LMHead" in a for a in architectures)
        model = _load(str(path), "causal-lm" if causal else "sequence-classification", None)
    tokenizer = load_tokenizer(path)
    _pad(model, tokenizer)
    return model.eval(), tokenizer


def load_task(name: str | Path, task: Task, *, from_file: bool = False) -> tuple[nn.Module, Any]:
    """Return a finished model of a task and its tokenizer: a folder, a hub id or a packaged name.

    Nothing is fetched for a name that comes ``from_file``.

    Raises
    ------
    ModelError
        Nothing can be loaded from there, or it is for another task, or its head would have to be drawn anew.
    """
    wanted = "sequence-classification" if task == "classification" else "causal-lm"
    if Path(name).is_dir():
        model, tokenizer = load_trained(name)
    else:
        model = _load(str(name), wanted, None, from_file=from_file).eval()
        tokenizer = load_tokenizer(name, from_file=from_file)
        _pad(model, tokenizer)
    inner: Any = model
    plain = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    found = "sequence-classification" if "Classification" in type(plain).__name__ else "causal-lm"
    if found != wanted:
        raise ModelError(f"{name} is a {found} model, and the rows are for {task}")
    if plain is model and (fresh := fresh_tensors(model)):
        raise ModelError(
            f"{name} has no trained head ({', '.join(fresh)} would be new): tune it on the task first"
        )
    return model, tokenizer


def _load_adapted(path: Path) -> nn.Module:
    from peft import PeftModel

    settings, manifest = admit_adapter(path), read_object(path, "asepsis.json")
    kind = "sequence-classification" if settings.get("task_type") == "SEQ_CLS" else "causal-lm"
    base = manifest.get("model") or settings.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ModelError(f"{path}: the adapter does not name its base model")
    classes = manifest.get("n_classes")
    if isinstance(classes, int) and classes > MOST_LABELS:
        raise ModelError(f"{path}: asepsis.json says {classes:,} classes, {MOST_LABELS:,} at most are taken")
    # who wrote the adapter chose its base: what is here is taken, nothing is fetched
    network = _load(base, kind, classes if isinstance(classes, int) else None, from_file=True)
    with warnings.catch_warnings(), foreign(f"peft cannot load the adapter in {path}"):
        # peft goes on with factors drawn at random
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model: nn.Module = PeftModel.from_pretrained(network, str(path), use_safetensors=True)
    check_finite(model, f"the adapter in {path}")
    return model


def load_tokenizer(name: str | Path, *, from_file: bool = False) -> Any:
    """Return the tokenizer of a folder, a hub id or a packaged model, with a pad token.

    Nothing is fetched for a name that comes ``from_file``.
    """
    from transformers import AutoTokenizer

    packaged, _ = _demo(str(name))
    options: dict[str, Any] = {"trust_remote_code": False}
    if packaged is not None:
        folder = packaged.path
        options |= {"gguf_file": packaged.gguf_file} if packaged.gguf_file else {}
    else:
        folder = folder_of(str(name), from_file=from_file)
        admit_tokenizer(folder)
    with foreign(f"no tokenizer in {name}"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
        tokenizer(_PROBE)  # a table that is broken shows when it is used
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # per-sample losses are read from the left
    return tokenizer


def _demo(name: str) -> tuple[PackagedModel | None, int | None]:
    if not name.startswith("demo:"):
        return None, None
    kind, _, layers = name.removeprefix("demo:").partition(":")
    if layers and not layers.isdecimal():
        raise ModelError(f"{name}: what follows the second colon is a number of layers, got {layers!r}")
    return packaged_model(f"demo:{kind}"), int(layers) if layers else None


def _architectures(path: Path) -> list[str]:
    if not inside(path, CONFIG).is_file():
        raise ModelError(f"no model in {path}: it has no {CONFIG}")
    listed = read_object(path, CONFIG).get("architectures")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def _load(name: str, kind: str, n_classes: int | None, *, from_file: bool = False) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    packaged, layers = _demo(name)
    auto: Any = (
        AutoModelForSequenceClassification if kind == "sequence-classification" else AutoModelForCausalLM
    )
    options: dict[str, Any] = (
        {"num_labels": n_classes} if n_classes and kind == "sequence-classification" else {}
    )
    if layers is not None:
        options["num_hidden_layers"] = layers
    if packaged is None or not packaged.gguf_file:
        folder = packaged.path if packaged else folder_of(name, from_file=from_file)
        model, missing = load_admitted(auto, folder, name if packaged is None else str(folder), options)
    else:
        with foreign(f"cannot load {name} as {kind}"):
            model, loaded = auto.from_pretrained(
                str(packaged.path),
                gguf_file=packaged.gguf_file,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            )
        missing = sorted(loaded["missing_keys"])
        _forget_quantization(model)
    mark_fresh(model, missing)
    return model


def _forget_quantization(model: Any) -> None:
    """Make a dequantized GGUF model an ordinary one: transformers refuses to save it otherwise."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None


def _pad(model: Any, tokenizer: Any) -> None:
    words = model.get_input_embeddings()
    rows = getattr(words, "num_embeddings", None)
    top = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and top >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {top:,}, and the word embeddings have {rows:,} rows: {top:,} has no row; give the "
            "tokenizer that belongs to the model, or model.resize_token_embeddings first"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def room(model: nn.Module, max_length: int) -> int:
    """Return how many tokens of a text are kept: at most what a model has positions for, beside an adapter's virtual tokens."""
    outer: Any = model
    config = getattr(outer.get_base_model() if hasattr(outer, "get_base_model") else outer, "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return max_length
    adapter = getattr(outer, "active_peft_config", None)
    taken = int(adapter.num_virtual_tokens) if adapter is not None and adapter.is_prompt_learning else 0
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        taken += 2  # positions count from the padding token's id plus one
    return max(1, min(max_length, int(longest) - taken))
