"""What mkdocs calls while it builds the site: navigation from the files, pages and tables from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import reference
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]

#: Pages by section. Those that do not exist are left out, those named nowhere go under "More".
SECTIONS: dict[str, tuple[str, ...]] = {
    "Start": ("index.md", "install.md", "quickstart.md", "first-hour.md"),
    "Defenses": ("defenses/*.md",),
    "Guides": (
        "training.md",
        "scaling.md",
        "scan_model.md",
        "guard.md",
        "detectors.md",
        "report.md",
        "bench.md",
    ),
    "Reference": ("cli.md", "threat_model.md", "glossary.md", "papers.md", "reliability.md"),
    "Speed": ("performance.md", "performance-cpu.md"),
    "Results": ("results/*.md",),
    "Inside": ("architecture.md", "adding_a_defense.md"),
}
GENERATED = {"cli.md": reference.cli_page}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def navigation(docs: Path) -> list[dict[str, list[str]]]:
    """Return every page under a folder, and those generated, each once."""
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | set(GENERATED)
    left, nav = set(there), []
    for title, patterns in SECTIONS.items():
        pages: list[str] = []
        for pattern in patterns:
            found = sorted(p.relative_to(docs).as_posix() for p in docs.glob(pattern))
            pages += [p for p in (found or [pattern]) if p in left]
        left -= set(pages)
        if pages:
            nav.append({title: pages})
    return [*nav, {"More": sorted(left)}] if left else nav


def leave_docs(markdown: str, source: str, docs: Path) -> str:
    """Turn links to files of the repository that are no part of the site into their paths.

    Raises
    ------
    ValueError
        If such a file does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group(0)
        path = (docs / source).parent.joinpath(target.partition("#")[0]).resolve()
        if path.is_relative_to(docs) or image:
            return match.group(0)
        if not path.exists():
            raise ValueError(f"docs/{source} links to {target}, which does not exist")
        return f"{text} (`{path.relative_to(docs.parent).as_posix()}`)"

    return LINK.sub(replace, markdown)


def on_config(config: Any) -> Any:
    """Fill in the navigation."""
    config.nav = navigation(Path(config.docs_dir))
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are made from the code."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Put tables of settings where a page asks for them, and keep links inside the site."""
    del files
    docs = Path(config.docs_dir)
    return leave_docs(reference.with_settings(markdown), page.file.src_uri, docs)
