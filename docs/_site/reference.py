"""Pages and tables made from the code: settings of each defense, and the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

MARK = re.compile(r"<!-- settings: (\w+) -->")
ENTRY = re.compile(r"^    ([a-z_, ]+) : (.+)\n((?:        .*\n|\n)+)", re.MULTILINE)


def described(kind: type) -> dict[str, tuple[str, str]]:
    """Return type and description of each field, from the class's numpydoc docstring."""
    section = (kind.__doc__ or "").split("----------", 1)[1] + "\n"
    found = {}
    for names, types, text in ENTRY.findall(section):
        for name in names.split(","):
            found[name.strip()] = (types.strip(), " ".join(text.split()))
    return found


def settings_table(kind: Any) -> str:
    """Return the fields of a config as a table: name, default, meaning.

    Raises
    ------
    ValueError
        If a field has no description.
    """
    texts = described(kind)
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name not in texts:
            raise ValueError(f"{kind.__name__}.{field.name} is not described in the docstring")
        types, text = texts[field.name]
        meaning = f"*{types}*: {text}" if "{" in types else text
        lines.append(f"| `{field.name}` | `{_literal(field.default)}` | {_plain(meaning)} |")
    return "\n".join(lines)


def with_settings(markdown: str) -> str:
    """Put the table of ``asepsis.NAME`` after each ``<!-- settings: NAME -->``."""
    import asepsis

    return MARK.sub(lambda match: f"\n{settings_table(getattr(asepsis, match[1]))}\n", markdown)


def verbs(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every verb as its words."""
    for name, entry in table.items():
        if isinstance(entry, str):
            if name:
                yield (*path, name)
        else:
            yield from verbs(entry, (*path, name))


def cli_page() -> str:
    """Return what ``--help`` says of every verb, as a page."""
    from asepsis.cli._app import VERBS

    parts = [
        "# Command line",
        "Made from the code, so it is what `--help` says. Exit codes: 0 done or nothing found, 1 findings (scans), "
        "2 error or inconclusive, 3 nothing to scan, 4 usage. Errors are one or two lines on stderr; `--debug` "
        "shows the traceback.",
    ]
    for words in verbs(VERBS):
        parts += [f"## asepsis {' '.join(words)}", f"```text\n{helped(words)}\n```"]
    return "\n\n".join(parts) + "\n"


def helped(words: tuple[str, ...]) -> str:
    """Return the help of one verb."""
    from asepsis.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([*words, "--help"])
    if code:
        raise RuntimeError(f"asepsis {' '.join(words)} --help ended with {code}")
    return said.getvalue().strip("\n")


def _literal(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return repr(value).replace("|", "\\|")


def _plain(text: str) -> str:
    """Turn the docstring's markup into Markdown that fits into a cell."""
    text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    return text.replace("|", "\\|")
