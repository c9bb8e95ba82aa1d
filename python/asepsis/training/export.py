"""Hand a finished run on: its stock files alone, or its adapter merged into a plain checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from asepsis.core.export import FACTORS
from asepsis.core.folders import whole_folder
from asepsis.core.manifest import RECORDS
from asepsis.core.weights.folders import inside
from asepsis.errors import CheckpointError, ModelError
from asepsis.training.models import load_trained

_OURS = RECORDS | {FACTORS}


def export_folder(folder: str | Path, output: str | Path, *, merge: bool = False) -> Path:
    """Copy the stock files of a saved run to a new folder, which appears whole or not at all.

    Parameters
    ----------
    folder : path
        Written by :meth:`asepsis.Run.save_pretrained`.
    output : path
        Must not exist.
    merge : bool
        Load base and adapter and write one plain checkpoint. A checkpoint is copied as it is.

    Raises
    ------
    CheckpointError
        ``output`` exists.
    ModelError
        ``folder`` holds no model, or a link that leads out of it.
    """
    source, target = Path(folder), Path(output)
    if target.exists():
        raise CheckpointError(f"{target} exists; name a folder that does not")
    is_adapter = (source / "adapter_config.json").is_file()
    if not is_adapter and not (source / "config.json").is_file():
        raise ModelError(f"{folder} is not a folder with a saved model")
    with whole_folder(target) as scratch:
        if merge and is_adapter:
            adapted, tokenizer = load_trained(source)
            model: Any = adapted
            model.merge_and_unload().save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        else:
            for file in sorted(source.iterdir()):
                if file.name not in _OURS and inside(source, file.name).is_file():
                    shutil.copy2(file, scratch / file.name)
    return target
