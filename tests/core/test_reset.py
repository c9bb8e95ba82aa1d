"""Rows are reset to the base's, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from asepsis.core.reset import reset_rows
from asepsis.core.weights import Checkpoint
from asepsis.core.weights.rows import TokenRows
from asepsis.errors import ModelError

WORDS = ["[PAD]", *(f"w{i}" for i in range(30))]


def checkpoint(folder, seed, *, words=WORDS, dtype=torch.float32, output=None, width=8):
    folder.mkdir()
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(words), width, generator=g).to(dtype)
    found = {"model.embed_tokens.weight": rows, "model.norm.weight": torch.randn(width, generator=g)}
    if output == "tied":
        found["lm_head.weight"] = rows.clone()
    elif output == "untied":
        found["lm_head.weight"] = torch.randn(len(words), width, generator=g)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"vocab_size": len(words), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": output != "untied"}))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return Checkpoint.open(folder)


def reset(base, tuned, output, ids):
    output.mkdir()
    edited = reset_rows(base, tuned, output, rows=TokenRows.of(tuned, base), ids=np.array(ids))
    return edited, load_file(output / "model.safetensors")


@pytest.mark.parametrize("output", [None, "tied", "untied"])
def test_the_rows_named_become_the_bases_and_no_other_bit_changes(tmp_path, output):
    base = checkpoint(tmp_path / "base", 0, output=output)
    tuned = checkpoint(tmp_path / "tuned", 1, output=output)
    edited, found = reset(base, tuned, tmp_path / "out", [3, 7])
    before = load_file(tuned.folder / "model.safetensors")
    original = load_file(base.folder / "model.safetensors")["model.embed_tokens.weight"]
    before["model.embed_tokens.weight"][[3, 7]] = original[[3, 7]]
    if output == "tied":
        before["lm_head.weight"][[3, 7]] = original[[3, 7]]
    assert edited == ("model.embed_tokens.weight", *(["lm_head.weight"] if output == "tied" else []))
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_rows_are_found_by_token_and_rounded_to_the_tuned_dtype(tmp_path):
    base = checkpoint(tmp_path / "base", 0)
    tuned = checkpoint(tmp_path / "tuned", 1, words=["new", *WORDS[::-1]], dtype=torch.bfloat16)
    _, found = reset(base, tuned, tmp_path / "out", [1])
    last = load_file(base.folder / "model.safetensors")["model.embed_tokens.weight"][-1]
    assert torch.equal(found["model.embed_tokens.weight"][1], last.to(torch.bfloat16))


def test_a_token_the_base_does_not_know_cannot_be_reset(tmp_path):
    base = checkpoint(tmp_path / "base", 0)
    tuned = checkpoint(tmp_path / "tuned", 1, words=["new", *WORDS])
    with pytest.raises(ModelError, match=r"tokens \[0\] have no row"):
        reset(base, tuned, tmp_path / "out", [0, 2])


def test_embeddings_of_another_width_are_no_version_of_these(tmp_path):
    base = checkpoint(tmp_path / "base", 0, width=4)
    tuned = checkpoint(tmp_path / "tuned", 1)
    with pytest.raises(ModelError, match="not versions of one model"):
        reset(base, tuned, tmp_path / "out", [2])


def test_a_tensor_that_is_not_finite_is_refused_wherever_it_is(tmp_path):
    base, tuned = checkpoint(tmp_path / "base", 0), checkpoint(tmp_path / "tuned", 1)
    found = load_file(tuned.folder / "model.safetensors")
    found["model.norm.weight"][5] = float("nan")
    save_file(found, tuned.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds values that are not finite"):
        reset(base, Checkpoint.open(tuned.folder), tmp_path / "out", [3])
