"""Every error asepsis raises. The file is the catalogue.

Each class derives from :class:`AsepsisError` and from the builtin it resembles, so that callers may catch either.
A message says what was got, what was wanted and the way out.
"""

from __future__ import annotations


class AsepsisError(Exception):
    """Base of all errors raised on purpose by asepsis."""


class ConfigError(AsepsisError, ValueError):
    """A setting has the wrong type, lies outside its bounds, or does not exist."""


class DataError(AsepsisError, ValueError):
    """Rows that cannot be used: a missing column, a malformed line, a label out of range, duplicate ids."""


class NoRows(DataError):
    """There is not a single row to work on."""


class ModelError(AsepsisError, ValueError):
    """A model or tokenizer that cannot be loaded or does not fit the data."""


class MissingDependency(AsepsisError, ImportError):
    """An optional package is not installed. The message holds the line that installs it."""


class MissingReference(AsepsisError, ValueError):
    """A defense needs something it was not given: clean reference rows, a pretrained base."""


class DefenseInert(AsepsisError, RuntimeError):
    """A defense found that it could not act: no sample scored, no token examined. Never a quiet pass."""


class AccuracyLost(AsepsisError, RuntimeError):
    """A repaired model does worse on clean rows than was allowed. Nothing is handed back.

    Attributes
    ----------
    reached : list of dict
        What was tried and how well it did, JSON-ready.
    """

    def __init__(self, message: str, reached: list[dict[str, object]] | None = None) -> None:
        super().__init__(message)
        self.reached = reached or []


class BackendError(AsepsisError, RuntimeError):
    """An explicitly requested backend cannot run here."""


class LedgerError(AsepsisError, ValueError):
    """The loss ledger was given positions out of range, wrong shapes, or asked before anything was recorded."""


class CheckpointError(AsepsisError, ValueError):
    """A saved run is incomplete, altered, or was written for something else."""
