"""Train clean language models from untrusted data, and clean untrusted weights.

>>> import asepsis
>>> run = asepsis.defend("demo:encoder", "untrusted.jsonl", defense="abl")  # doctest: +SKIP
>>> run.save_pretrained("out")  # doctest: +SKIP

Names are imported when they are first used, so importing asepsis costs nothing and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from asepsis._native import __version__

if TYPE_CHECKING:
    from asepsis.core.drift import ModelScan as ModelScan
    from asepsis.core.drift import scan_model as scan_model
    from asepsis.core.fuse import fuse as fuse
    from asepsis.core.fuse import unfuse as unfuse
    from asepsis.core.fuse_report import FuseReport as FuseReport
    from asepsis.core.manifest import Verification as Verification
    from asepsis.core.manifest import verify as verify
    from asepsis.data import Data as Data
    from asepsis.data import read as read
    from asepsis.defenses._abl_config import AblConfig as AblConfig
    from asepsis.defenses._btu_config import BtuConfig as BtuConfig
    from asepsis.defenses._epur_config import EpurConfig as EpurConfig
    from asepsis.defenses._finemixing_config import FinemixingConfig as FinemixingConfig
    from asepsis.defenses._musclelora_config import MuscleloraConfig as MuscleloraConfig
    from asepsis.defenses._psim_config import PsimConfig as PsimConfig
    from asepsis.inference.composition import Pipeline as Pipeline
    from asepsis.inference.guard import Guard as Guard
    from asepsis.training import Run as Run
    from asepsis.training import Settings as Settings
    from asepsis.training import defend as defend
    from asepsis.training.defended import defended as defended
    from asepsis.training.purify import Purified as Purified
    from asepsis.training.purify import purify as purify
    from asepsis.training.scan import Scan as Scan
    from asepsis.training.scan import scan_data as scan_data

_HOMES = {
    "AblConfig": "asepsis.defenses._abl_config",
    "BtuConfig": "asepsis.defenses._btu_config",
    "Data": "asepsis.data",
    "ModelScan": "asepsis.core.drift",
    "EpurConfig": "asepsis.defenses._epur_config",
    "FinemixingConfig": "asepsis.defenses._finemixing_config",
    "FuseReport": "asepsis.core.fuse_report",
    "Guard": "asepsis.inference.guard",
    "MuscleloraConfig": "asepsis.defenses._musclelora_config",
    "Pipeline": "asepsis.inference.composition",
    "PsimConfig": "asepsis.defenses._psim_config",
    "Purified": "asepsis.training.purify",
    "Run": "asepsis.training",
    "Scan": "asepsis.training.scan",
    "Settings": "asepsis.training",
    "Verification": "asepsis.core.manifest",
    "defend": "asepsis.training",
    "defended": "asepsis.training.defended",
    "fuse": "asepsis.core.fuse",
    "purify": "asepsis.training.purify",
    "read": "asepsis.data",
    "scan_data": "asepsis.training.scan",
    "scan_model": "asepsis.core.drift",
    "unfuse": "asepsis.core.fuse",
    "verify": "asepsis.core.manifest",
}

__all__ = [
    "AblConfig",
    "BtuConfig",
    "Data",
    "EpurConfig",
    "FinemixingConfig",
    "FuseReport",
    "Guard",
    "ModelScan",
    "MuscleloraConfig",
    "Pipeline",
    "PsimConfig",
    "Purified",
    "Run",
    "Scan",
    "Settings",
    "Verification",
    "__version__",
    "defend",
    "defended",
    "fuse",
    "purify",
    "read",
    "scan_data",
    "scan_model",
    "unfuse",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'asepsis' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
