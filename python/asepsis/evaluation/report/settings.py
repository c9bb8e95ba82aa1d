"""What decided a result, in a few lines and as the whole record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from asepsis.data.visible import visible

_LONGEST_RECORD = 60_000
_LONGEST_VALUE = 400
#: Long lists that the sections of a report show already.
_SHOWN = ("scan", "check")


def settings_of(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the few names and values that decide a result, as the manifest has them, visible."""
    found: list[tuple[str, Any]] = [("model", manifest.get("model")), ("base", manifest.get("base"))]
    data = manifest.get("data")
    if isinstance(data, Mapping):
        found.append(("data", f"{data.get('source')}, {data.get('rows')} rows"))
        found.append(("data fingerprint", str(data.get("fingerprint"))[:16]))
    choices = manifest.get("defenses") or [manifest.get("defense")]
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, Mapping):
            config = choice.get("config") or {}
            found.append((str(choice.get("name")), _listed(config) or "no settings"))
    found.append(("detector", manifest.get("detector")))
    found.append(("seed", manifest.get("seed")))
    found.append(("training", _listed(manifest.get("settings"))))
    found.append(("steps", manifest.get("steps")))
    found.append(("versions", _listed(manifest.get("versions"), " ")))
    return [
        (visible(name, 60), visible(str(value), _LONGEST_VALUE))
        for name, value in found
        if value not in (None, "")
    ]


def record_of(manifest: Mapping[str, Any]) -> str:
    """Return everything the run recorded as JSON that can be shown, without what the report shows in full."""
    kept = {name: value for name, value in manifest.items() if name not in _SHOWN}
    text = json.dumps(kept, indent=1, default=str, sort_keys=True, ensure_ascii=False)
    return visible(text, _LONGEST_RECORD, lines=True)


def _listed(values: Any, sign: str = "=") -> str:
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(f"{name}{sign}{value}" for name, value in values.items() if value is not None)
