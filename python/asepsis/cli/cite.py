"""``asepsis cite``: the reference of a defense's paper, ready to paste."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from asepsis.defenses.base import Paper


def cite(*, name: Annotated[str, typer.Argument(help="A defense, for example musclelora.")]) -> None:
    """Print the reference of a defense's paper."""
    from asepsis.defenses import available, load

    if name not in available():
        raise typer.BadParameter(f"no defense is called {name!r}; there are {', '.join(available())}")
    paper = load(name).paper
    typer.echo(short(paper))
    typer.echo()
    typer.echo(bibtex(name, paper))


def short(paper: Paper) -> str:
    """Return the reference as one line of prose."""
    return f"{paper.authors}. {paper.title}. {paper.venue} {paper.year}. {paper.url}"


def bibtex(name: str, paper: Paper) -> str:
    """Return the reference as a BibTeX entry, keyed by first author, year and defense."""
    authors = _names(paper.authors)
    surname = re.sub(r"\W", "", authors[0].split()[-1].lower())
    fields = {
        "title": f"{{{_escape(paper.title)}}}",
        "author": _escape(" and ".join(authors)),
        "booktitle": _escape(paper.venue),
        "year": str(paper.year),
        "eprint": paper.arxiv,
        "archiveprefix": "arXiv" if paper.arxiv else "",
        "url": paper.url,
    }
    lines = [f"  {field:<13} = {{{value}}}," for field, value in fields.items() if value]
    return "\n".join([f"@inproceedings{{{surname}{paper.year}{name},", *lines, "}"])


def _names(authors: str) -> list[str]:
    """Split ``"A One, B Two and C Three"`` as BibTeX wants it; it writes ``et al.`` as ``others``."""
    spelled = re.sub(r",?\s+et al\.?$", " and others", authors.strip())
    return re.split(r",\s+and\s+|,\s*|\s+and\s+", spelled)


def _escape(text: str) -> str:
    return re.sub(r"(?<!\\)([&%#_])", r"\\\1", text)
