"""The site is made from the files and from the code: nothing is left out, nothing is stale, no link leads nowhere."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asepsis.defenses import available, load

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PARTS = ("What it does", "When it helps", "When not to trust it", "Settings", "Evidence", "Paper")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The hooks, imported as mkdocs imports them."""
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    yield importlib.import_module("hooks")
    for name in ("hooks", "reference"):
        sys.modules.pop(name, None)


def test_every_page_is_in_the_navigation_once(site: Any) -> None:
    pages = [page for section in site.navigation(DOCS) for pages in section.values() for page in pages]
    assert len(pages) == len(set(pages))
    assert set(pages) == {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")} | {"cli.md"}


def test_a_page_nobody_placed_is_still_in_the_navigation(site: Any, tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# a\n")
    (tmp_path / "stranger.md").write_text("# b\n")
    assert site.navigation(tmp_path) == [
        {"Start": ["index.md"]},
        {"Reference": ["cli.md"]},
        {"More": ["stranger.md"]},
    ]


def test_a_link_out_of_the_docs_becomes_a_path_and_a_dead_one_is_an_error(site: Any) -> None:
    kept = "[a](index.md) [b](https://example.org) [c](#d) ![e](../x.svg)"
    assert site.leave_docs(kept, "glossary.md", DOCS) == kept
    assert (
        site.leave_docs("[the map](../CONTRIBUTING.md)", "glossary.md", DOCS) == "the map (`CONTRIBUTING.md`)"
    )
    with pytest.raises(ValueError, match="which does not exist"):
        site.leave_docs("[x](../no-such-file.md)", "glossary.md", DOCS)


@pytest.mark.parametrize("name", available())
def test_the_table_of_settings_is_the_config(site: Any, name: str) -> None:
    import reference

    kind = load(name).config_type
    rows = reference.settings_table(kind).splitlines()[2:]
    fields = dataclasses.fields(kind)
    assert len(rows) == len(fields)
    for row, field in zip(rows, fields, strict=True):
        cells = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert cells[0] == f"`{field.name}`"
        shown = cells[1].strip("`")
        assert shown == (f'"{field.default}"' if isinstance(field.default, str) else repr(field.default))
        assert len(cells) == 3 and len(cells[2]) > 5


def test_a_field_without_a_description_is_an_error(site: Any) -> None:
    import reference

    @dataclasses.dataclass
    class Bare:
        """Settings.

        Attributes
        ----------
        told : int
            Something.
        """

        told: int = 1
        untold: int = 2

    Bare.__doc__ = re.sub("^    ", "", Bare.__doc__ or "", flags=re.MULTILINE)
    with pytest.raises(ValueError, match=r"Bare\.untold is not described"):
        reference.settings_table(Bare)


def test_the_command_line_page_has_every_verb_with_its_options(site: Any) -> None:
    import reference

    from asepsis.cli._app import VERBS

    page = reference.cli_page()
    verbs = list(reference.verbs(VERBS))
    assert ("scan", "data") in verbs
    assert re.findall(r"^## asepsis (.+)$", page, re.MULTILINE) == [" ".join(words) for words in verbs]
    assert page.count("```text\n") == len(verbs)
    assert "--target-fpr" in page and "--clean-reference" in page


@pytest.mark.parametrize("name", available())
def test_every_defense_has_a_page_in_the_same_form(site: Any, name: str) -> None:
    text = (DOCS / "defenses" / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(PARTS)
    kind = load(name)
    assert f"<!-- settings: {kind.config_type.__name__} -->" in text
    assert kind.paper.url in text
    assert text.startswith(f"# {name}: ")


@pytest.mark.parametrize("name", available())
def test_numbers_of_a_defense_page_come_from_the_results(name: str) -> None:
    text = (DOCS / "defenses" / f"{name}.md").read_text(encoding="utf-8")
    evidence = text.split("## Evidence")[1].split("## Paper")[0]
    sources = re.findall(r"\]\(\.\./(results/\w+\.md)\)", evidence)
    measured = "".join((DOCS / source).read_text(encoding="utf-8") for source in sources)
    numbers = re.findall(r"\d\.\d{3}(?: ± \d\.\d{3})?", evidence)
    assert bool(numbers) == bool(sources)
    assert not [number for number in numbers if number not in measured]


def test_the_site_builds_and_no_link_is_broken(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "defenses" / "abl.html").read_text(encoding="utf-8")
    assert "<code>isolation_ratio</code>" in page and "settings: AblConfig" not in page
    assert "asepsis scan model" in (tmp_path / "site" / "cli.html").read_text(encoding="utf-8")
    # offline: nothing is asked of another machine when a page is opened
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page)
