"""Checkpoints are mixed bit by bit and whole, or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from asepsis.core.mixing import Mixing, mix_checkpoints
from asepsis.core.reset import reset_rows
from asepsis.core.weights import Checkpoint
from asepsis.core.weights.rows import TokenRows
from asepsis.errors import CheckpointError, DefenseInert, ModelError
from asepsis.kernels.mixing import lanes, tensor_key

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


N = len(WORDS)


def tensors(seed, *, words=N, dtype=torch.float32, prefix="bert."):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    return {
        f"{prefix}embeddings.word_embeddings.weight": draw(words, 16),
        f"{prefix}embeddings.position_ids": torch.arange(40).reshape(1, 40),
        f"{prefix}encoder.layer.0.weight": draw(300, 400),
        f"{prefix}encoder.layer.0.bias": draw(300),
        f"{prefix}pooler.dense.weight": draw(16, 16),
    }


def save(folder: Path, found, *, words=WORDS, config=None, tokenizer=True):
    folder.mkdir()
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"model_type": "bert", "vocab_size": len(words), "hidden_size": 16} | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    if tokenizer:
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture
def pair(tmp_path):
    head = {"classifier.weight": torch.ones(2, 16), "classifier.bias": torch.ones(2)}
    base = save(tmp_path / "base", tensors(0, prefix=""))
    return base, save(tmp_path / "tuned", tensors(1) | head)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


def load(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_e6_a_ratio_of_zero_or_one_is_a_copy_bit_for_bit(pair, tmp_path, ratio):
    base, tuned = pair
    report = mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=ratio)
    wanted = load(tuned)
    if ratio == 0:
        wanted |= {f"bert.{name}": value for name, value in load(base).items()}
    same(load(tmp_path / "out"), wanted)
    assert report.ratio == ratio
    assert report.heads == ("classifier.bias", "classifier.weight")


def test_e6_masks_are_nested_over_ratios_and_realized_within_four_sigma(pair, tmp_path):
    base, tuned = pair
    mixing = Mixing.of(Checkpoint.open(base), Checkpoint.open(tuned))
    name, before = "bert.encoder.layer.0.weight", torch.zeros(300, 400, dtype=torch.bool)
    for ratio in (0.05, 0.1, 0.3, 0.5, 0.9):
        (tmp_path / str(ratio)).mkdir()
        report = mixing.write(tmp_path / str(ratio), reserve_ratio=ratio, seed=3)
        found = load(tmp_path / str(ratio))[name]
        kept = found == load(tuned)[name]
        assert (kept | (found == load(base)[name.removeprefix("bert.")])).all()
        assert not (before & ~kept).any()
        before = kept
        for tensor in report.mixed:
            sigma = math.sqrt(ratio * (1 - ratio) / tensor.elements)
            assert abs(tensor.ratio - ratio) < 4 * sigma, tensor
        assert report.to_dict()["realized_ratio"] == report.ratio


def test_the_mask_of_a_tensor_hangs_on_its_name_and_the_seed_alone(pair, tmp_path):
    base, tuned = pair
    mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=0.4, seed=9)
    name = "bert.encoder.layer.0.weight"
    keep = lanes(9, tensor_key(name), 0, 120_000).reshape(300, 400) < round(0.4 * 65536)
    wanted = torch.where(torch.from_numpy(keep), load(tuned)[name], load(base)["encoder.layer.0.weight"])
    assert torch.equal(load(tmp_path / "out")[name], wanted)


def test_e6_tied_tensors_stay_tied_where_they_are_stored_twice(tmp_path):
    sides = []
    for seed, name in enumerate(("base", "tuned")):
        found = tensors(seed)
        found["lm_head.weight"] = found[EMBEDDINGS].clone()
        sides.append(save(tmp_path / name, found, config={"tie_word_embeddings": True}))
    mix_checkpoints(*sides, tmp_path / "out", reserve_ratio=0.5)
    found = load(tmp_path / "out")
    assert torch.equal(found[EMBEDDINGS], found["lm_head.weight"])
    assert not torch.equal(found[EMBEDDINGS], load(sides[1])[EMBEDDINGS])


def test_untied_output_rows_have_a_mask_of_their_own(tmp_path):
    sides = []
    for seed, name in enumerate(("base", "tuned")):
        found = tensors(seed) | {"lm_head.weight": torch.full((len(WORDS), 16), float(seed))}
        sides.append(save(tmp_path / name, found, config={"tie_word_embeddings": False}))
    mix_checkpoints(*sides, tmp_path / "out", reserve_ratio=0.5)
    found = load(tmp_path / "out")
    kept = found[EMBEDDINGS] == load(sides[1])[EMBEDDINGS]
    assert not torch.equal(kept, found["lm_head.weight"] == 1)


def test_a_base_in_another_dtype_is_rounded_to_the_tuned_one(tmp_path):
    base = save(tmp_path / "base", tensors(0))
    tuned = save(tmp_path / "tuned", tensors(1, dtype=torch.bfloat16))
    mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=0.0)
    wanted = {n: v.to(torch.bfloat16) if v.is_floating_point() else v for n, v in load(base).items()}
    same(load(tmp_path / "out"), wanted)


def test_rows_of_another_vocabulary_are_mixed_by_token(tmp_path):
    base = save(tmp_path / "base", tensors(0))
    order = ["new1", *WORDS[::-1], "new2"]
    extra = {"cls.predictions.bias": torch.full((len(order),), 7.0)}
    tuned = save(tmp_path / "tuned", tensors(1, words=len(order)) | extra, words=order)
    base_extra = load(base) | {"cls.predictions.bias": torch.arange(len(WORDS), dtype=torch.float32)}
    save_file(base_extra, base / "model.safetensors", metadata={"format": "pt"})
    report = mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=0.0)
    rows, tuned_rows = load(tmp_path / "out")[EMBEDDINGS], load(tuned)[EMBEDDINGS]
    assert torch.equal(rows[1:-1], load(base)[EMBEDDINGS].flip(0))
    assert torch.equal(rows[[0, -1]], tuned_rows[[0, -1]])
    bias = load(tmp_path / "out")["cls.predictions.bias"]
    assert bias.tolist() == [7.0, *range(len(WORDS) - 1, -1, -1), 7.0]
    assert report.no_reference == (0, len(order) - 1)
    assert report.matched_by == "token"


def test_rows_go_by_position_only_where_a_tokenizer_is_missing_and_it_is_said(tmp_path, caplog):
    base = save(tmp_path / "base", tensors(0), tokenizer=False)
    tuned = save(tmp_path / "tuned", tensors(1))
    report = mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=0.0)
    assert report.matched_by == "position"
    assert "matched by position" in caplog.text
    longer = save(tmp_path / "longer", tensors(1, words=70), words=[*WORDS, *"abcdef"])
    with pytest.raises(ModelError, match="tokenizer"):
        mix_checkpoints(base, longer, tmp_path / "out2", reserve_ratio=0.0)


def test_what_has_another_shape_is_kept_and_reported(pair, tmp_path):
    base, tuned = pair
    found = load(base) | {"pooler.dense.weight": torch.zeros(8, 16)}
    save_file(found, base / "model.safetensors", metadata={"format": "pt"})
    report = mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=0.0)
    by_name = {tensor.name: tensor for tensor in report.tensors}
    assert by_name["bert.pooler.dense.weight"].status == "kept"
    assert "[8, 16] in the base" in str(by_name["bert.pooler.dense.weight"].reason)
    assert by_name["bert.embeddings.position_ids"].status == "copied"
    assert torch.equal(
        load(tmp_path / "out")["bert.pooler.dense.weight"], load(tuned)["bert.pooler.dense.weight"]
    )


def test_a_head_drawn_anew_is_that_of_its_seed(pair, tmp_path):
    base, tuned = pair
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        report = mix_checkpoints(base, tuned, tmp_path / name, reserve_ratio=1.0, seed=seed, head="reinit")
    a, b, c = (load(tmp_path / name)["classifier.weight"] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert 0.01 < float(a.std()) < 0.03
    assert not load(tmp_path / "a")["classifier.bias"].any()
    assert {t.name for t in report.tensors if t.status == "drawn"} == {"classifier.weight", "classifier.bias"}


def test_shards_and_their_index_come_out_as_they_went_in(pair, tmp_path):
    base, tuned = pair
    found = load(tuned)
    parts = [dict(list(found.items())[::2]), dict(list(found.items())[1::2])]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tuned / name, metadata={"format": "pt"})
    (tuned / "model.safetensors").unlink()
    index = {"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    (tuned / "model.safetensors.index.json").write_text(json.dumps(index))
    mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=1.0)
    for name, part in zip(names, parts, strict=True):
        same(load_file(tmp_path / "out" / name), part)
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == index["weight_map"]
    assert (tmp_path / "out" / "vocab.txt").read_text() == (tuned / "vocab.txt").read_text()


def test_no_tensor_is_held_whole(pair, tmp_path, monkeypatch):
    import asepsis.core.mixing as mixing

    base, tuned = pair
    mix_checkpoints(base, tuned, tmp_path / "whole", reserve_ratio=0.4)
    longest = []
    kernel = mixing.mix
    monkeypatch.setattr(mixing, "CHUNK", 8 * 1001)
    monkeypatch.setattr(mixing, "mix", lambda *a, **k: (longest.append(len(a[2])), kernel(*a, **k))[1])
    mix_checkpoints(base, tuned, tmp_path / "parts", reserve_ratio=0.4)
    assert max(longest) <= 4 * 1001
    same(load(tmp_path / "whole"), load(tmp_path / "parts"))


def broken_nan(folder):
    found = load(folder)
    next(v for v in found.values() if v.is_floating_point())[0] = float("nan")
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def broken_cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def broken_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def broken_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def broken_shapes(folder):
    prefix = "bert." if "bert.pooler.dense.weight" in load(folder) else ""
    found = {n: v.new_zeros(3, 5) if v.is_floating_point() else v for n, v in load(folder).items()}
    found[f"{prefix}embeddings.word_embeddings.weight"] = torch.zeros(len(WORDS), 9)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (broken_nan, "not finite"),
        (broken_cut, "no whole safetensors file"),
        (broken_header, "no whole safetensors file"),
        (broken_pickle, "pickle"),
        (broken_shapes, "more than half of the weights"),
    ],
)
def test_a_broken_side_is_an_error_and_nothing_is_written(pair, tmp_path, side, break_it, message):
    break_it(pair[side])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=message):
        mix_checkpoints(*pair, tmp_path / "out", reserve_ratio=0.5)
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fails_half_way_leaves_nothing(pair, tmp_path, monkeypatch):
    import asepsis.core.mixing as mixing

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(mixing, "mix", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="no space"):
        mix_checkpoints(*pair, tmp_path / "out", reserve_ratio=0.5)
    assert sorted(tmp_path.iterdir()) == before


def test_what_was_not_tuned_cannot_be_mixed(pair, tmp_path):
    base, tuned = pair
    head = {name: value for name, value in load(tuned).items() if name.startswith("classifier")}
    save_file(load(base) | head, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DefenseInert, match="nothing to mix"):
        mix_checkpoints(base, tuned, tmp_path / "out", reserve_ratio=0.5)


def test_a_folder_that_holds_something_is_not_overwritten(pair, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        mix_checkpoints(*pair, tmp_path / "out", reserve_ratio=0.5)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_e8_reset_after_mixing_is_mixing_after_reset_bit_for_bit(tmp_path, dtype):
    base = Checkpoint.open(save(tmp_path / "base", tensors(0)))
    tuned = Checkpoint.open(save(tmp_path / "tuned", tensors(1, dtype=dtype)))
    ids, rows = np.array([5, 9, 40]), TokenRows.of(tuned, base)

    def mixed(side: Checkpoint, name: str) -> Checkpoint:
        mix_checkpoints(base, side, tmp_path / name, reserve_ratio=0.4, seed=2)
        return Checkpoint.open(tmp_path / name)

    def reset(side: Checkpoint, name: str) -> Checkpoint:
        (tmp_path / name).mkdir()
        reset_rows(base, side, tmp_path / name, rows=rows, ids=ids)
        return Checkpoint.open(tmp_path / name)

    one = reset(mixed(tuned, "m"), "mr").folder
    other = mixed(reset(tuned, "r"), "rm").folder
    same(load(one), load(other))
    assert torch.equal(load(one)[EMBEDDINGS][ids], load(base.folder)[EMBEDDINGS][ids].to(dtype))
    assert not torch.equal(load(one)[EMBEDDINGS], load(tmp_path / "m")[EMBEDDINGS])
