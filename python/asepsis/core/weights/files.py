"""A saved model as its files: which tensors, where, and which of them are the embeddings. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from asepsis.core.weights.folders import ADAPTER, CONFIG, INDEX, read_object, weight_files
from asepsis.core.weights.headers import StoredTensor, read_header, same_bytes
from asepsis.errors import ModelError

# how libraries end the name of word embeddings, and of the matrix that turns states into words
_INPUT = (
    "word_embeddings.weight",
    "embed_tokens.weight",
    "wte.weight",
    "tok_embeddings.weight",
    "shared.weight",
    "embed_in.weight",
    "word_embedding.weight",
    "token_embedding.weight",
    "embeddings.weight",
)
_OUTPUT = (
    "lm_head.weight",
    "embed_out.weight",
    "decoder.weight",
    "vocab_projector.weight",
    "output.weight",
    "output_embeddings.weight",
)
_WRITERS = ("ForCausalLM", "LMHead", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
_FEW_BITS = ("F8_", "F6_", "F4")
# what quantizers store beside packed weights
_PACKED = {
    "SCB",
    "absmax",
    "quant_map",
    "qweight",
    "qzeros",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder that ``save_pretrained`` wrote, its headers checked and its weights not read.

    Attributes
    ----------
    folder
        Where it lies.
    config
        ``config.json``.
    tensors
        By name, in name order.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, *, quantized: bool = False) -> Checkpoint:
        """Open a checkpoint of one safetensors file or of shards.

        ``quantized`` lets pass what the configuration says is quantized, for those who run a model and do not compare it.

        Raises
        ------
        ModelError
            The folder holds no whole safetensors checkpoint, or a quantized one.
        """
        path = Path(folder)
        if not path.is_dir():
            raise ModelError(f"{folder} is not a folder; name one that save_pretrained wrote")
        if (path / ADAPTER).is_file():
            # transformers takes the adapter's word over the folder's own weights
            raise ModelError(
                f"{path} holds {ADAPTER}: it is an adapter; name it where an adapter is wanted, or merge it"
            )
        config = read_object(path, CONFIG)
        if not config:
            raise ModelError(f"{path} has no {CONFIG}; name a folder that save_pretrained wrote")
        tensors: dict[str, StoredTensor] = {}
        for file, expected in weight_files(path).items():
            found = read_header(file)
            if expected is not None and (odd := found.keys() ^ set(expected)):
                raise ModelError(
                    f"{path}: {INDEX} and {file.name} do not agree about {min(odd)!r}; download the model again"
                )
            tensors |= found
        checkpoint = cls(path, config, dict(sorted(tensors.items())))
        if not (quantized and config.get("quantization_config")):
            checkpoint._refuse_quantized()
        if not tensors:
            raise ModelError(f"{path} holds no tensors; download the model again")
        return checkpoint

    @cached_property
    def input_embeddings(self) -> str:
        """Name of the word embeddings, ``[V, D]``.

        Raises
        ------
        ModelError
            No tensor, or more than one, could be it.
        """
        shaped = [t for t in self.tensors.values() if len(t.shape) == 2 and t.floating]
        rows = self.setting("vocab_size")
        for end in _INPUT:
            named = [t for t in shaped if _ends(t.name, end)]
            # an encoder's and a decoder's may differ in size; the configuration's is the one that reads words
            named = [t for t in named if t.shape[0] == rows] or named
            if named:
                return min(named, key=lambda t: (t.name.count("."), t.name)).name
        fitting = [
            t.name for t in shaped if t.shape[0] == rows and not any(_ends(t.name, e) for e in _OUTPUT)
        ]
        if len(fitting) == 1:
            return fitting[0]
        raise ModelError(
            f"{self.folder}: cannot tell which tensor holds the word embeddings of {rows} tokens; "
            f"{', '.join(fitting[:3]) or 'none'} would fit, and a name such as {_INPUT[1]} is looked for"
        )

    @cached_property
    def output_embeddings(self) -> str | None:
        """Name of the untied matrix that scores the next token, ``[V, D]``; None where tied, or for a classifier."""
        name = self._stored_output
        return None if name is None or name in self.tied_copies else name

    @cached_property
    def tied(self) -> bool:
        """Whether the word embeddings score the next token too, so that every step moves every row."""
        if self._stored_output is not None:
            return self._stored_output in self.tied_copies
        # a masked model's tying is the default, and configurations leave defaults out
        declared = self.setting("tie_word_embeddings")
        return declared is not False and any(
            word in str(a) for a in self.config.get("architectures") or () for word in _WRITERS
        )

    @cached_property
    def tied_copies(self) -> tuple[str, ...]:
        """Names of tensors stored again that are the word embeddings bit for bit; who edits those edits these."""
        words = self.tensors[self.input_embeddings]
        return tuple(
            t.name
            for t in self.tensors.values()
            if t.name != words.name
            and any(_ends(t.name, end) for end in (*_INPUT, *_OUTPUT))
            and (t.shape, t.dtype) == (words.shape, words.dtype)
            and same_bytes(t, words)
        )

    def setting(self, name: str) -> Any:
        """Return a value of the configuration, of its text part where a model reads more than text."""
        text = self.config.get("text_config")
        return self.config.get(name, text.get(name) if isinstance(text, dict) else None)

    @cached_property
    def _stored_output(self) -> str | None:
        rows = self.tensors[self.input_embeddings].shape
        for end in _OUTPUT:
            for tensor in self.tensors.values():
                if _ends(tensor.name, end) and tensor.shape == rows:
                    return tensor.name
        return None

    def _refuse_quantized(self) -> None:
        method = self.config.get("quantization_config")
        packed = [
            t.name
            for t in self.tensors.values()
            if t.dtype.startswith(_FEW_BITS)
            or (
                not t.floating
                and ("weight" in t.name.rpartition(".")[2] or t.name.rpartition(".")[2] in _PACKED)
            )
        ]
        if method or packed:
            what = f"{CONFIG} has a quantization_config" if method else f"{packed[0]} is quantized"
            raise ModelError(
                f"{self.folder}: {what}; rounding to 8 bits or fewer hides what training changed. Use the weights "
                "it was made from, in float32, bfloat16 or float16"
            )


def aligned_names(tuned: Checkpoint, base: Checkpoint) -> dict[str, str | None]:
    """Return for each tensor of ``tuned`` its name in ``base``, None where base has none.

    A prefix such as ``bert.`` or ``model.`` that only one side has is found: of all ways to replace one prefix of a
    side by one of the other, the one that pairs most names. No two names share a partner.
    """
    best, ours = 0, ("", "")
    for left in _prefixes(tuned):
        for right in _prefixes(base):
            stripped = (n.removeprefix(left) for n in tuned.tensors if n.startswith(left))
            pairs = sum(right + name in base.tensors for name in stripped)
            if pairs > best:
                best, ours = pairs, (left, right)
    left, right = ours
    found: dict[str, str | None] = {}
    for name in tuned.tensors:
        other = right + name.removeprefix(left)
        found[name] = other if name.startswith(left) and other in base.tensors else None
    taken = set(found.values())
    for name, other_name in found.items():
        if other_name is None and name in base.tensors and name not in taken:
            found[name] = name
    return found


def _prefixes(checkpoint: Checkpoint) -> Iterator[str]:
    """No prefix first, then every first and second part of a name: ``bert.``, ``model.language_model.``."""
    seen = {""}
    for name in checkpoint.tensors:
        parts = name.split(".")[:-1]
        seen |= {".".join(parts[:depth]) + "." for depth in (1, 2) if len(parts) >= depth}
    yield from sorted(seen, key=lambda prefix: (prefix.count("."), prefix))


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
