"""What every test may rely on: no network, one thread, the same chance each time."""

from __future__ import annotations

import os

# read by the libraries when they are imported, so they are set before any test module is
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that draw from the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def nan_filled_empty() -> Iterator[None]:
    """Fill ``torch.empty`` with NaN, so that reading memory nobody wrote shows."""
    import torch

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def letters() -> Any:
    """A tokenizer to which every letter and every space is a token, and which loses none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [
        "[PAD]",
        "[EOS]",
        "\u0120",
        "\u010a",
        *"abcdefghijklmnopqrstuvwxyz",
    ]  # the two: a space, a line's end
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(known)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]")


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write checkpoints made up of arrays: ``model_folder("name", {tensor: array}, tokens=[...])``."""

    def write(
        name: str,
        tensors: dict[str, Any],
        *,
        tokens: Sequence[str] | None = None,
        special: Sequence[str] = ("[PAD]",),
        config: dict[str, Any] | None = None,
        shards: int = 1,
    ) -> Path:
        import torch
        from safetensors.torch import save_file

        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"architectures": ["BertForSequenceClassification"], "vocab_size": len(tokens or ())}
        (folder / "config.json").write_text(json.dumps({**settings, **(config or {})}))
        values = {k: torch.as_tensor(v).contiguous() for k, v in tensors.items()}
        if shards == 1:
            save_file(values, str(folder / "model.safetensors"))
        else:
            places = {
                k: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, k in enumerate(values)
            }
            for file in set(places.values()):
                part = {k: v for k, v in values.items() if places[k] == file}
                save_file(part, str(folder / file))
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        if tokens is not None:
            from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

            vocabulary = {token: at for at, token in enumerate(tokens)}
            tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0]))
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            tokenizer.add_special_tokens([AddedToken(t, special=True) for t in special])
            tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return write
