"""A defense's config from a file and ``--set`` pairs: fields come from the dataclass, so do the errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import typer

from asepsis.core.documents import read_json, read_yaml
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


def detector_config(name: str, pairs: list[str]) -> DefenseConfig:
    """Return the config of the detector called ``name``."""
    from asepsis.inference import detectors

    if name not in detectors.available():
        raise typer.BadParameter(
            f"no detector is called {name!r}; there are {', '.join(detectors.available())}"
        )
    kind: type[DefenseConfig] = detectors.load(name).config_type
    return kind.from_dict(kind.parse_strings(dict(_pair(text) for text in pairs)))


def several_configs(names: str, config: Path | None, pairs: list[str]) -> list[DefenseConfig]:
    """Return the configs of defenses named with commas between; a setting names its field, or ``defense.field``.

    A field without its defense belongs to every defense that has it; the file has a mapping of fields per defense.
    """
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in available()]:
        raise typer.BadParameter(f"no defense is called {unknown[0]!r}; there are {', '.join(available())}")
    kinds: dict[str, type[DefenseConfig]] = {name: load(name).config_type for name in wanted}
    values: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    for name, part in (_from_file(config) if config is not None else {}).items():
        if name not in values or not isinstance(part, dict):
            raise ConfigError(f"{config} must hold a mapping of fields for each of {names}, got {name!r}")
        values[name] |= part
    for text in pairs:
        field, value = _pair(text)
        owner, dot, rest = field.partition(".")
        field = rest if dot else field
        owners = [owner] if dot else [n for n, kind in kinds.items() if field in _fields(kind)]
        if not owners or owners[0] not in kinds or field not in _fields(kinds[owners[0]]):
            known = sorted({name for kind in kinds.values() for name in _fields(kind)})
            raise ConfigError(f"--set {text}: none of {names} has that field; they have {', '.join(known)}")
        for name in owners:
            values[name] |= kinds[name].parse_strings({field: value})
    return [kinds[name].from_dict(values[name]) for name in wanted]


def _fields(kind: type[DefenseConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _pair(text: str) -> tuple[str, str]:
    field, equals, value = text.partition("=")
    if not equals or not field:
        raise typer.BadParameter(f"--set takes field=value, got {text!r}")
    return field, value


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of fields, got {type(values).__name__}")
    return values


def parsed_pairs(pairs: list[str]) -> dict[str, str]:
    """Return ``--set`` pairs as field to text."""
    return dict(_pair(text) for text in pairs)
