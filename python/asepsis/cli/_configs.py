"""A defense's config from a file and ``--set`` pairs: fields come from the dataclass, so do the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from asepsis.defenses import available, load
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import ConfigError


def defense_config(name: str, config: Path | None, pairs: list[str]) -> DefenseConfig | None:
    """Return the config of the defense called ``name``; None for ``none``, which takes no settings."""
    if name == "none":
        if pairs or config is not None:
            raise typer.BadParameter("defense none has no settings")
        return None
    if name not in available():
        raise typer.BadParameter(f"no defense is called {name!r}; there are none, {', '.join(available())}")
    kind: type[DefenseConfig] = load(name).config_type
    values = _from_file(config) if config is not None else {}
    values |= kind.parse_strings(dict(_pair(text) for text in pairs))
    return kind.from_dict(values)


def _pair(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise typer.BadParameter(f"--set takes field=value, got {text!r}")
    return field, value


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from error
    if path.suffix.lower() == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
    else:
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of fields, got {type(values).__name__}")
    return values


def parsed_pairs(pairs: list[str]) -> dict[str, str]:
    """Return ``--set`` pairs as field to text."""
    return dict(_pair(text) for text in pairs)
