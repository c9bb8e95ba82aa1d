"""``asepsis cite`` prints references that BibTeX accepts."""

from __future__ import annotations

import re

import pytest

from asepsis.cli import cite, main
from asepsis.defenses import available, load
from asepsis.defenses.base import Paper

PAPER = Paper(
    title="Heat & Light",
    authors="Ada Long, Bo de Wit and C. Ng",
    venue="Proc. X_1",
    year=2020,
    arxiv="2001.1",
)


@pytest.mark.parametrize("name", available())
def test_every_defense_can_be_cited(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", name]) == 0
    out = capsys.readouterr().out
    assert load(name).paper.title in out.splitlines()[0]
    assert re.search(rf"^@inproceedings{{[a-z]+\d{{4}}{name},$", out, re.MULTILINE)
    assert out.count("{") == out.count("}")


def test_the_entry_is_what_bibtex_wants() -> None:
    assert cite.bibtex("abl", PAPER) == "\n".join(
        [
            "@inproceedings{long2020abl,",
            r"  title         = {{Heat \& Light}},",
            "  author        = {Ada Long and Bo de Wit and C. Ng},",
            r"  booktitle     = {Proc. X\_1},",
            "  year          = {2020},",
            "  eprint        = {2001.1},",
            "  archiveprefix = {arXiv},",
            "  url           = {https://arxiv.org/abs/2001.1},",
            "}",
        ]
    )


@pytest.mark.parametrize(
    ("authors", "names"),
    [
        ("Ada Long", ["Ada Long"]),
        ("Ada Long and Bo Wit", ["Ada Long", "Bo Wit"]),
        ("Ada Long, Bo Wit, and C. Ng", ["Ada Long", "Bo Wit", "C. Ng"]),
        ("Ada Long et al.", ["Ada Long", "others"]),
    ],
)
def test_authors_are_split_into_names(authors: str, names: list[str]) -> None:
    assert cite._names(authors) == names


def test_an_unknown_name_is_a_usage_error_that_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "no-such-defense"]) == 4
    said = capsys.readouterr().err
    assert "no-such-defense" in said
    for name in available():
        assert name in said
