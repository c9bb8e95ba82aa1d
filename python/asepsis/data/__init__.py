"""Rows in and out: files, data sets and packaged text, under stable sample ids."""

from __future__ import annotations

from asepsis.data.dataset import Data, Task
from asepsis.data.formats import read_rows
from asepsis.data.inputs import read_inputs
from asepsis.data.packaged import (
    PackagedModel,
    demo_model,
    demo_rows,
    demo_text,
    packaged_model,
    resolve_model,
)
from asepsis.data.readers import read
from asepsis.data.writers import write_rows

__all__ = [
    "Data",
    "PackagedModel",
    "Task",
    "demo_model",
    "demo_rows",
    "demo_text",
    "packaged_model",
    "read",
    "read_inputs",
    "read_rows",
    "resolve_model",
    "write_rows",
]
