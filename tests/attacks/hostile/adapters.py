"""PEFT adapters that bring in code, other models, or more than they hold. Made from a sound LoRA adapter."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

from hostile import Corpus
from hostile.folders import CODE, Payload, edited
from hostile.tensors import whole

ADAPTERS = Corpus("adapters")
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"

FOLLOWED = "is not followed|is not read"


def setting(name: str, says: str, *, passes: str = "", **values: Any) -> None:
    ADAPTERS.add(name, says, passes=passes)(lambda folder: edited(folder, CONFIG, **values))


def content(name: str, raw: str | bytes, says: str, *, file: str = CONFIG) -> None:
    data = raw if isinstance(raw, bytes) else raw.encode()
    ADAPTERS.add(name, says)(lambda folder: (folder / file).write_bytes(data) and None)


def valued(name: str, says: str, *, passes: str = ""):
    """Add a case that edits the adapter's tensors."""

    def taken(edit):
        def make(folder: Path) -> None:
            from safetensors.torch import load_file, save_file

            tensors = load_file(folder / FILE)
            edit(tensors)
            save_file(
                {k: v.contiguous() for k, v in tensors.items()}, folder / FILE, metadata={"format": "pt"}
            )

        ADAPTERS.add(name, says, passes=passes)(make)

    return taken


# the base is named on the command line of a scan, and by the adapter everywhere else
NAMED = "scan"
_ABSENT = "neither a folder|no such folder|not load|does not name"
setting("a base on the hub", _ABSENT, passes=NAMED, base_model_name_or_path="evil/base")
setting("a base on the hub without an owner", _ABSENT, passes=NAMED, base_model_name_or_path="evilbase")
setting("a base at an address", _ABSENT, passes=NAMED, base_model_name_or_path="https://evil.example/base")
setting("a base above", _ABSENT, passes=NAMED, base_model_name_or_path="../../nowhere")
setting("a base that is a file", _ABSENT, passes=NAMED, base_model_name_or_path="/etc/passwd")
setting("a base that is a list", _ABSENT, passes=NAMED, base_model_name_or_path=["evil"])
setting("no base", _ABSENT, passes=NAMED, base_model_name_or_path=None)
setting("a module to import", FOLLOWED, megatron_config={"a": 1}, megatron_core="evil", passes=NAMED)
setting("layers repeated a million times", FOLLOWED, layer_replication=[[0, 2]] * 10**4)
setting("experts from other adapters", FOLLOWED, peft_type="XLORA", adapters={"a": "evil/adapter"})
setting("arrows to other adapters", FOLLOWED, arrow_config={"top_k": 1}, passes=NAMED)
setting("a tokenizer with code", FOLLOWED, tokenizer_kwargs={"trust_remote_code": True}, passes=NAMED)
setting(
    "a library to import",
    FOLLOWED,
    passes=NAMED,
    auto_mapping={"parent_library": "evil", "base_model_class": "E"},
)
setting("an unknown kind of adapter", "not read|not load|EVIL", peft_type="EVIL")
_EVER = "for ever|more than a module's name"
setting("modules by a pattern that never ends", _EVER, target_modules="(a+)+$", passes=NAMED)
setting("modules by a pattern of many repeats", _EVER, target_modules=".*a" * 40, passes=NAMED)
setting("modules by a pattern of 30,000 letters", _EVER, target_modules="a" * 30_000, passes=NAMED)
setting("modules by a choice that never ends", _EVER, target_modules="(.|.)*x", passes=NAMED)
setting("modules by a dozen repeats", _EVER, target_modules=".*" * 12 + "x", passes=NAMED)
setting("modules by a choice forty times over", _EVER, target_modules="(?:a?){40}x", passes=NAMED)
setting("modules by what was matched before", _EVER, target_modules=r"(.*)(.*)\1x", passes=NAMED)
setting("modules by a class that ends early", _EVER, target_modules="[[:a:](a+)+]", passes=NAMED)
setting(
    "a thousand ranks by slow patterns",
    _EVER,
    rank_pattern={f".*.*.*.*x{i}": 4 for i in range(1000)},
    passes=NAMED,
)
setting("modules by a broken pattern", "which is none", target_modules="(", passes=NAMED)
setting("ranks by a pattern that never ends", _EVER, rank_pattern={"((a*)*)*": 4}, passes=NAMED)
setting("scales by a pattern that never ends", _EVER, alpha_pattern={"(.*.*)+$": 4})
_LONGER = "no tensor of .* is longer"
setting("a rank of 10**9", _LONGER, r=10**9, passes=NAMED)
setting("a rank of 10**9 for one module", _LONGER, rank_pattern={"query": 10**9}, passes=NAMED)
setting("a rank of 400 digits", _LONGER, r=10**399, passes=NAMED)
setting("10**9 virtual tokens", _LONGER, num_virtual_tokens=10**9, passes=NAMED)
_NUMBER = "must be a.* number|not load"
setting("a scale that is infinite", _NUMBER, lora_alpha=math.inf)
setting("a scale that is NaN", _NUMBER, lora_alpha=math.nan)
setting("a scale that is text", _NUMBER, lora_alpha="8")
setting("a scale of 400 digits", _NUMBER + "|too large", lora_alpha=10**399)
setting("a rank of 0", "not load|positive|0", r=0, passes=NAMED)
content("settings that are no JSON", "{", "not JSON")
content("settings that are a list", "[]", "must be a JSON object")
content("settings that are empty", "{}", "not read|has no")
content("settings nested without end", '{"a":' * 10**5, "deep|not JSON")
content("settings that say two things", '{"r": 1, "r": 2}', "twice")
content("an adapter that is no safetensors", b"\0" * 100, "no whole safetensors", file=FILE)
content("an adapter with a header of 33 MB", whole({}, length=33 << 20), "no whole safetensors", file=FILE)
content(
    "an adapter of nothing", whole({"__metadata__": {}}), "missing|no tensor|not load|no whole", file=FILE
)


@ADAPTERS.add("a pickle for an adapter", "pickle|no adapter_model.safetensors")
def _(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))


@ADAPTERS.add("a pickle under an adapter's name", "no whole safetensors")
def _(folder: Path) -> None:
    (folder / FILE).write_bytes(pickle.dumps(Payload()))


@ADAPTERS.add("an adapter that is its own base", "is an adapter|cannot load", passes=NAMED)
def _(folder: Path) -> None:
    edited(folder, CONFIG, base_model_name_or_path=str(folder))


@ADAPTERS.add("a base whose code lies in the adapter's folder", "cannot load|no model", passes=NAMED)
def _(folder: Path) -> None:
    base = folder / "base"
    base.mkdir()
    (base / "modeling_evil.py").write_text(CODE)
    names = {"AutoModelForSequenceClassification": "modeling_evil.Model"}
    (base / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": names}))
    edited(folder, CONFIG, base_model_name_or_path=str(base))


@ADAPTERS.add("an adapter that is a link to a device", "leads out of")
def _(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / FILE).symlink_to("/dev/zero")


@ADAPTERS.add("a manifest that names another base", _ABSENT, passes=NAMED)
def _(folder: Path) -> None:
    (folder / "asepsis.json").write_text('{"format": 1, "model": "evil/base", "n_classes": 2}')


@ADAPTERS.add("a manifest with a million classes", "belong|classes|not load", passes=NAMED)
def _(folder: Path) -> None:
    base = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    (folder / "asepsis.json").write_text(json.dumps({"format": 1, "model": base, "n_classes": 10**9}))


def first(tensors: dict[str, Any], side: str) -> str:
    return next(name for name in sorted(tensors) if f"lora_{side}" in name)


@valued("a factor with a NaN", "not finite|NaN")
def _(tensors):
    tensors[first(tensors, "A")][0, 0] = math.nan


@valued("a factor with an infinity", "not finite|NaN|infinite")
def _(tensors):
    tensors[first(tensors, "B")][0, 0] = math.inf


@valued("a factor that is missing", "missing|not load")
def _(tensors):
    del tensors[first(tensors, "B")]


@valued("a factor of another width", "not load|the base's tensor")
def _(tensors):
    name = first(tensors, "A")
    tensors[name] = tensors[name][:, :-1]


@valued("a factor of integers", "wanted floats|integers")
def _(tensors):
    name = first(tensors, "A")
    tensors[name] = tensors[name].long()


@valued("factors of a layer that the base lacks", "no such tensor|not load|missing")
def _(tensors):
    for side in "AB":
        name = first(tensors, side)
        tensors[name.replace("layer.0", "layer.99")] = tensors.pop(name)
