from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

from asepsis.core.weights import Checkpoint, aligned_names, find_checkpoint
from asepsis.errors import ModelError
from asepsis.testing import tiny_causal, tiny_classifier

TOKENS = ["[PAD]", *(f"w{i}" for i in range(11))]
WORDS = "bert.embeddings.word_embeddings.weight"


def arrays(rows=12, width=4, **more):
    rng = np.random.default_rng(0)
    return {
        WORDS: rng.standard_normal((rows, width)).astype(np.float32),
        "bert.bias": np.ones(3, np.float32),
        **more,
    }


def test_offsets_and_shapes_are_those_of_the_file(model_folder):
    tensors = arrays()
    checkpoint = Checkpoint.open(model_folder("m", tensors, tokens=TOKENS))
    assert list(checkpoint.tensors) == sorted(tensors)
    for name, wanted in tensors.items():
        stored = checkpoint.tensors[name]
        read = np.fromfile(stored.path, np.float32, wanted.size, offset=stored.offset)
        assert np.array_equal(read.reshape(stored.shape), wanted)
        assert stored.nbytes == wanted.nbytes and stored.dtype == "F32" and stored.floating
    assert checkpoint.tensors["bert.bias"].matrix().shape == (1, 3)


def test_shards_make_one_checkpoint(model_folder):
    one = Checkpoint.open(model_folder("one", arrays(), tokens=TOKENS))
    many = Checkpoint.open(model_folder("many", arrays(), tokens=TOKENS, shards=2))
    assert [(t.name, t.shape) for t in one.tensors.values()] == [
        (t.name, t.shape) for t in many.tensors.values()
    ]
    assert len({t.path for t in many.tensors.values()}) == 2
    assert many.input_embeddings == WORDS


def test_more_than_two_dimensions_are_rows_of_the_first(model_folder):
    folder = model_folder("m", arrays(conv=np.zeros((5, 2, 3), np.float16)), tokens=TOKENS)
    assert Checkpoint.open(folder).tensors["conv"].matrix().shape == (5, 6)


def test_real_models_show_their_embeddings(tmp_path):
    network, _ = tiny_classifier(0)
    network.save_pretrained(tmp_path / "c")
    classifier = Checkpoint.open(tmp_path / "c")
    assert classifier.input_embeddings == WORDS
    assert not classifier.tied and classifier.output_embeddings is None
    network, _ = tiny_causal(0)
    network.save_pretrained(tmp_path / "l")
    causal = Checkpoint.open(tmp_path / "l")
    assert causal.input_embeddings == "model.embed_tokens.weight"
    assert causal.output_embeddings == "lm_head.weight" and not causal.tied


def test_a_matrix_stored_twice_is_tied_and_named(model_folder):
    words = np.ones((12, 4), np.float32)
    config = {"architectures": ["LlamaForCausalLM"]}
    tensors = {"model.embed_tokens.weight": words, "lm_head.weight": words.copy()}
    same = Checkpoint.open(model_folder("same", tensors, tokens=TOKENS, config=config))
    assert same.tied and same.output_embeddings is None and same.tied_copies == ("lm_head.weight",)
    tensors["lm_head.weight"][3, 1] = 2
    other = Checkpoint.open(model_folder("other", tensors, tokens=TOKENS, config=config))
    assert not other.tied and other.output_embeddings == "lm_head.weight" and other.tied_copies == ()


def test_an_output_that_is_not_stored_is_tied(model_folder):
    words = {"model.embed_tokens.weight": np.ones((12, 4), np.float32)}
    causal = {"architectures": ["LlamaForCausalLM"]}
    assert Checkpoint.open(model_folder("m", words, tokens=TOKENS, config=causal)).tied


def test_embeddings_with_a_strange_name_are_found_by_shape_or_refused(model_folder):
    one = {"tower.lookup": np.ones((12, 4), np.float32), "tower.dense": np.ones((4, 4), np.float32)}
    assert Checkpoint.open(model_folder("one", one, tokens=TOKENS)).input_embeddings == "tower.lookup"
    two = {**one, "tower.again": np.ones((12, 4), np.float32)}
    with pytest.raises(ModelError, match="cannot tell which tensor"):
        _ = Checkpoint.open(model_folder("two", two, tokens=TOKENS)).input_embeddings


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("bert.", ""), ("", "bert."), ("model.language_model.", "model."), ("", "")],
)
def test_a_prefix_that_one_side_lacks_is_found(model_folder, ours, theirs):
    body = {f"block.{i}.weight": np.ones(2, np.float32) for i in range(4)}
    tuned = {ours + k: v for k, v in body.items()} | {"classifier.weight": np.ones(2, np.float32)}
    base = {theirs + k: v for k, v in body.items()} | {"pooler.weight": np.ones(2, np.float32)}
    names = aligned_names(Checkpoint.open(model_folder("t", tuned)), Checkpoint.open(model_folder("b", base)))
    assert names == {"classifier.weight": None, **{ours + k: theirs + k for k in body}}


def test_no_two_tensors_share_a_partner(model_folder):
    tuned = {"bert.a": np.ones(1, np.float32), "bert.b": np.ones(1, np.float32), "a": np.ones(1, np.float32)}
    base = {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    names = aligned_names(Checkpoint.open(model_folder("t", tuned)), Checkpoint.open(model_folder("b", base)))
    assert names == {"bert.a": "a", "bert.b": "b", "a": None}


def test_a_pickle_is_refused_with_the_way_out(model_folder):
    folder = model_folder("m", arrays(), tokens=TOKENS)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle can run code.*save_pretrained"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({}, {"quantization_config": {"quant_method": "gptq"}}),
        ({"layer.weight": np.ones((4, 4), np.uint8)}, {}),
        ({"layer.qweight": np.ones((4, 4), np.int32)}, {}),
        ({"layer.SCB": np.ones(4, np.int32)}, {}),
        ({"layer.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, {}),
    ],
)
def test_quantized_weights_are_refused(model_folder, tensors, config):
    with pytest.raises(ModelError, match="quantiz"):
        Checkpoint.open(model_folder("m", arrays(**tensors), tokens=TOKENS, config=config))


def test_buffers_of_whole_numbers_are_no_quantization(model_folder):
    buffers = {"position_ids": np.arange(4), "attn.bias": np.ones((2, 2), bool)}
    assert len(Checkpoint.open(model_folder("m", arrays(**buffers), tokens=TOKENS)).tensors) == 4


@pytest.mark.parametrize("cut", [3, 40, -1])
def test_a_truncated_file_is_refused(model_folder, cut):
    file = model_folder("m", arrays(), tokens=TOKENS) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"no whole safetensors file.*again"):
        Checkpoint.open(file.parent)


def broken_header(folder, text):
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    data = content[8 + length :]
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,999999]}}',
        '{"a":{"dtype":"F32","shape":[999],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F99","shape":[3],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,12]}}',
    ],
)
def test_a_header_that_lies_is_refused(model_folder, text):
    folder = model_folder("m", {"a": np.ones(3, np.float32)})
    broken_header(folder, text)
    with pytest.raises(ModelError):
        Checkpoint.open(folder)


def test_a_tensor_named_twice_is_refused(model_folder):
    folder = model_folder("m", {"a": np.ones(3, np.float32)})
    entry = '"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}'
    broken_header(folder, f"{{{entry},{entry}}}")
    with pytest.raises(ModelError):
        Checkpoint.open(folder)


def index(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards_that_are_missing_are_named(model_folder):
    folder = model_folder("m", arrays(), tokens=TOKENS, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "a\\\\b", "..", "", "x\\u0000y"]
)
def test_a_shard_outside_the_folder_is_refused(model_folder, name):
    model_folder("other", arrays(), tokens=TOKENS)
    folder = model_folder("m", arrays(), tokens=TOKENS, shards=2)
    index(folder, f'{{"weight_map": {{"{WORDS}": "{name}"}}}}')
    with pytest.raises(ModelError, match="no plain file name"):
        Checkpoint.open(folder)


def test_a_link_out_of_the_folder_is_refused(model_folder):
    other = model_folder("other", arrays(), tokens=TOKENS)
    folder = model_folder("m", arrays(), tokens=TOKENS)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other / "model.safetensors")
    with pytest.raises(ModelError, match="leads out of its folder"):
        Checkpoint.open(folder)


def test_links_of_the_hub_cache_are_followed(model_folder, tmp_path):
    plain = model_folder("plain", arrays(), tokens=TOKENS)
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in plain.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert Checkpoint.open(snapshot).input_embeddings == WORDS


def test_an_index_entry_that_is_there_twice_is_refused(model_folder):
    folder = model_folder("m", arrays(), tokens=TOKENS, shards=2)
    one, two = sorted(p.name for p in folder.glob("model-*"))
    index(folder, f'{{"weight_map": {{"{WORDS}": "{one}", "bert.bias": "{two}", "{WORDS}": "{two}"}}}}')
    with pytest.raises(ModelError, match="twice"):
        Checkpoint.open(folder)


def test_an_index_that_does_not_fit_its_shards_is_refused(model_folder):
    folder = model_folder("m", arrays(extra=np.ones(2, np.float32)), tokens=TOKENS, shards=2)
    content = json.loads((folder / "model.safetensors.index.json").read_text())
    del content["weight_map"]["extra"]
    index(folder, json.dumps(content))
    with pytest.raises(ModelError, match="do not agree about 'extra'"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(model_folder, text):
    folder = model_folder("m", arrays(), tokens=TOKENS)
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError):
        Checkpoint.open(folder)


def test_weights_beside_an_adapter_are_refused(model_folder):
    folder = model_folder("m", arrays(), tokens=TOKENS)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["nowhere", "demo:nothing", "demo:causal:x", "no/such-model"])
def test_what_is_nowhere_is_said_to_be(name):
    with pytest.raises(ModelError), find_checkpoint(name):
        pass


@pytest.mark.demo
def test_the_packaged_gguf_becomes_a_folder_that_vanishes():
    with find_checkpoint("demo:causal:1") as folder:
        checkpoint = Checkpoint.open(folder)
        assert checkpoint.tied and checkpoint.tensors[checkpoint.input_embeddings].shape == (49152, 576)
        assert {t.dtype for t in checkpoint.tensors.values()} == {"F32"}
    assert not folder.exists()
