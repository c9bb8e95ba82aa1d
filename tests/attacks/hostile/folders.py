"""Model folders that lie in what stands beside the weights: configuration, index, links, pickles."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

from hostile import Corpus
from hostile.tensors import FILE

CONFIGS = Corpus("configurations")
INDEXES = Corpus("shards and links")
PICKLES = Corpus("pickles and code")
#: What a payload makes when it runs, in the working directory of the test.
MARKER = "code-was-run"

INDEX = "model.safetensors.index.json"
_NOT_HERE = "cannot load|no model"


class Payload:
    """Unpickling it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


CODE = f"import os\nos.mkdir({MARKER!r})\n"


def edited(folder: Path, file: str = "config.json", **values: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **values}))


def setting(name: str, says: str, *, passes: str = "", **values: Any) -> None:
    CONFIGS.add(name, says, passes=passes)(lambda folder: edited(folder, **values))


def text(corpus: Corpus, name: str, file: str, content: str | bytes, says: str, *, passes: str = "") -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    corpus.add(name, says, passes=passes)(lambda folder: (folder / file).write_bytes(raw) and None)


_OTHER = "belongs to other weights|do not belong together"
# what only those who build the model look at
FILES = "scan purify"
setting("a million layers", _OTHER, num_hidden_layers=10**6, passes=FILES)
setting("2**31 layers", _OTHER, num_hidden_layers=2**31, passes=FILES)
setting("layers of a million", _OTHER + "|cannot load", hidden_size=10**6, passes=FILES)
setting("a middle layer of 10**11", _OTHER + "|cannot load", intermediate_size=10**11, passes=FILES)
setting("a vocabulary of 10**12", _OTHER + "|cannot (load|tell)", vocab_size=10**12, passes=FILES)
setting("10**12 positions", _OTHER + "|cannot load", max_position_embeddings=10**12, passes=FILES)
setting("two million heads", _OTHER, num_attention_heads=2 * 10**6, passes=FILES)
setting("a million experts", _OTHER, num_experts=10**6, passes=FILES)
setting("a million classes", _OTHER, num_labels=10**6, passes=FILES)
labels = {str(i): "a" for i in range(70_000)}
setting("a name for each of 70,000 classes", "id2label names", id2label=labels, passes=FILES)
setting("a number of 4,000 digits", "no number of anything|cannot", hidden_size=10**3999, passes=FILES)
setting("a width of thirty digits", "digits|cannot", hidden_size=10**30, passes=FILES)
setting("a width below zero", "cannot load|positive|number", hidden_size=-32, passes=FILES)
setting("a width that is text", "cannot load|int|str", hidden_size="32", passes=FILES)
setting("a width that is a list", "cannot load|int|list", hidden_size=[32], passes=FILES)
setting("an unknown kind of model", "cannot load|no model", model_type="evil", passes=FILES)
setting("no kind of model", "cannot load|no model", model_type=None, passes=FILES)
setting("kernels from a repository", "names the repository", attn_implementation="evil/kernels", passes=FILES)
setting(
    "kernels by part of the model",
    "names the repository",
    passes=FILES,
    _attn_implementation={"": "evil/kernels"},
)
setting("experts from a repository", "names the repository", experts_implementation="evil/k", passes=FILES)
setting(
    "other weights by name", "names other weights", transformers_weights="../other.safetensors", passes=FILES
)
setting(
    "a quantizer that there is not",
    "quantiz|cannot load",
    quantization_config={"quant_method": "evil"},
    passes="train evaluate guard",
)
setting("a quantizer without a name", "quantiz|cannot load", quantization_config={"bits": 4})
text(CONFIGS, "a configuration that is no JSON", "config.json", "{", "not JSON|cannot")
text(CONFIGS, "a configuration that is an array", "config.json", "[]", "must be a JSON object")
text(CONFIGS, "a configuration that is not UTF-8", "config.json", b'{"a": "\xff"}', "not JSON|utf-8")
text(CONFIGS, "a configuration in UTF-16", "config.json", "{}".encode("utf-16"), "not JSON|utf-8")
text(
    CONFIGS,
    "a configuration nested without end",
    "config.json",
    '{"a":' * 10**5 + "1" + "}" * 10**5,
    "deep|not JSON",
)
text(
    CONFIGS,
    "a configuration that says two things",
    "config.json",
    '{"vocab_size": 1, "vocab_size": 2}',
    "twice",
)
text(CONFIGS, "an empty configuration", "config.json", "{}", "no config.json|cannot load|no model")
text(
    CONFIGS,
    "settings of generation nested without end",
    "generation_config.json",
    "[" * 10**5,
    "deep|not JSON",
    passes=FILES,
)


@CONFIGS.add("a configuration of 33 MB", "more than")
def _(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(33 << 20)


@CONFIGS.add("no configuration", "no config.json|no model|cannot load")
def _(folder: Path) -> None:
    (folder / "config.json").unlink()


@CONFIGS.add("a folder for a configuration", "no config.json|no model|cannot load")
def _(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


@CONFIGS.add("a pipe for a configuration", "no config.json|no model|cannot load")
def _(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def index(name: str, says: str, weight_map: Any = None, raw: str | None = None) -> None:
    def make(folder: Path) -> None:
        (folder.parent / "other.safetensors").write_bytes((folder / FILE).read_bytes())
        (folder / FILE).rename(folder / "model-1.safetensors")
        content = json.dumps({"weight_map": weight_map}) if raw is None else raw
        (folder / INDEX).write_text(content)

    INDEXES.add(name, says)(make)


_NO_NAME = "no plain file name"
index("a shard above the folder", _NO_NAME, {"a": "../other.safetensors"})
index("a shard below the folder", _NO_NAME, {"a": "sub/model-1.safetensors"})
index("a shard by its whole path", _NO_NAME, {"a": "/etc/passwd"})
index("a shard behind a backslash", _NO_NAME, {"a": "..\\other.safetensors"})
index("a shard on a drive", _NO_NAME, {"a": "C:model.safetensors"})
index("a shard with a NUL", _NO_NAME, {"a": "model-1.safetensors\0.txt"})
index("a shard without a name", _NO_NAME, {"a": ""})
index("the folder as a shard", _NO_NAME, {"a": "."})
index("a shard that is a number", "must name a file", {"a": 1})
index("a shard that is missing", "missing", {"a": "model-2.safetensors"})
index("a shard that holds other tensors", "do not agree", {"a": "model-1.safetensors"})
index("a shard that is the configuration", "no whole safetensors|do not agree", {"a": "config.json"})
index("an index that is a list", "neither|has no|holds", ["model-1.safetensors"])
index("an index of nothing", "neither|has no|holds", {})
index("an index that says two things", "twice", raw='{"weight_map": {"a": "b", "a": "c"}}')
index("an index nested without end", "deep|not JSON", raw='{"weight_map":' * 10**5)


def link(name: str, file: str, to: str, *, passes: str = "") -> None:
    def make(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(to)

    INDEXES.add(name, "leads out of", passes=passes)(make)


link("a configuration that is a link to the passwords", "config.json", "/etc/passwd")
link("weights that are a link to a device", FILE, "/dev/zero")
link("weights that are a link to a file above", FILE, "../other.safetensors")
link("a tokenizer that is a link to a device", "tokenizer.json", "/dev/zero")
link("settings of the tokenizer behind a link", "tokenizer_config.json", "/proc/self/environ")
link("a model card that is a link to a key", "README.md", "/etc/shadow", passes="scan")


@PICKLES.add("a pickle in place of safetensors", "pickle|cannot load")
def _(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))


@PICKLES.add("a pickle under the name of safetensors", "no whole safetensors")
def _(folder: Path) -> None:
    (folder / FILE).write_bytes(pickle.dumps(Payload()))


@PICKLES.add("an index of pickles", "pickle|cannot load|neither")
def _(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "pytorch_model-1.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')


@PICKLES.add("an index of safetensors that names a pickle", "no whole safetensors")
def _(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    (folder / INDEX).write_text('{"weight_map": {"a": "pytorch_model.bin"}}')


@PICKLES.add("a model that brings its code", "cannot load|no model", passes=FILES)
def _(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text(CODE + "class Model: pass\nclass Config: pass\n")
    names = {
        "AutoConfig": "modeling_evil.Config",
        "AutoModelForSequenceClassification": "modeling_evil.Model",
    }
    edited(folder, model_type="evil", auto_map=names)


@PICKLES.add("a model whose code lies in a repository", "cannot load|no model", passes=FILES)
def _(folder: Path) -> None:
    edited(folder, model_type="evil", auto_map={"AutoConfig": "evil/repo--modeling_evil.Config"})


@PICKLES.add("a tokenizer that brings its code", "no tokenizer|cannot load", passes=FILES)
def _(folder: Path) -> None:
    (folder / "tokenization_evil.py").write_text(CODE + "class Tokenizer: pass\n")
    edited(
        folder,
        "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["tokenization_evil.Tokenizer", None]},
    )
    (folder / "tokenizer.json").unlink()


@PICKLES.add("an adapter hidden in a whole model", "adapter")
def _(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "evil/base", "peft_type": "LORA"}'
    )
