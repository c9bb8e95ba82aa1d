"""What the documentation says has been run: README's Python blocks, the verbs it names, the fields configs describe."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from asepsis.defenses import available, load
from asepsis.training.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_verb_in_the_readme_exists_and_every_verb_is_in_the_readme() -> None:
    from asepsis.cli._app import VERBS

    named = {
        line.split()[1]
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("asepsis ")
    }
    assert named == set(VERBS)


def test_the_two_commands_are_on_the_first_screen_of_the_readme() -> None:
    first = "\n".join(README.splitlines()[:20])
    assert "make demo" in first and "make test" in first


def test_the_readme_has_a_line_for_every_defense() -> None:
    for name in available():
        assert f"| `{name}`" in README


@pytest.mark.parametrize("kind", [Settings, *(load(name).config_type for name in available())])
def test_every_field_of_a_config_is_described_and_nothing_else(kind: type) -> None:
    assert kind.__doc__ is not None
    section = kind.__doc__.split("----------", 1)[1]
    described: set[str] = set()
    for names in re.findall(r"^    ([a-z_, ]+) : ", section, flags=re.MULTILINE):
        described |= {name.strip() for name in names.split(",")}
    assert described == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(600)
def test_the_python_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asepsis.data import demo_rows

    for name, data in zip(("untrusted", "trusted"), demo_rows(120, 32, seed=0), strict=True):
        assert data.labels is not None
        rows = [{"text": x, "label": int(y)} for x, y in zip(data.texts, data.labels, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)  # the point of this test
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert names["rest"] is not None
