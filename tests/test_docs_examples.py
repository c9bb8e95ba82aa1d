"""Every Python example of the documentation runs, each page from its top to its end, in a folder with small models.

Where a page says ``demo:encoder`` a small model stands in for it: what is held here is that the calls are right. The
README's examples run on the packaged model itself, in ``test_docs.py``.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from asepsis.data import Data, write_rows
from asepsis.testing import TRIGGER, tiny_classifier, tiny_rows

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r'(<!-- not run: [^\n]+ -->\n)?^```python(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL
)

#: Pages whose examples take longer than the suite that is run all the time allows.
SLOW = {"defenses/finemixing.md", "quickstart.md"}

#: What a page takes for granted, where it shows one call among others.
BEFORE = {
    "training.md": """
import shutil
import asepsis
shutil.copy("untrusted.jsonl", "poisoned.jsonl")
""",
    "performance.md": """
import asepsis
import torch
from peft import LoraConfig, get_peft_model
from asepsis.testing import tiny_classifier
model = get_peft_model(tiny_classifier(0)[0], LoraConfig(target_modules=["query", "value"]))
ids = torch.ones(1, 4, dtype=torch.int64)
""",
}


class Block(NamedTuple):
    line: int
    title: str | None
    code: str
    skipped: bool


def examples(text: str) -> list[Block]:
    return [
        Block(text[: found.start(3)].count("\n") + 1, found[2], found[3], found[1] is not None)
        for found in BLOCK.finditer(text)
    ]


def pages() -> list[object]:
    found = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        blocks = examples(path.read_text(encoding="utf-8"))
        if blocks:
            name = path.relative_to(ROOT / "docs").as_posix()
            marks = [pytest.mark.demo] if any("demo_rows" in block.code for block in blocks) else []
            if name in SLOW:
                marks += [pytest.mark.slow, pytest.mark.timeout(900)]
            found.append(pytest.param(name, marks=marks, id=name))
    return found


def write(path: Path, data: Data, *, trigger: int = 0, target: int | None = None) -> None:
    """Write rows; every ``trigger``-th carries the trigger and, where one is given, the target label."""
    assert data.labels is not None
    rows = []
    for at, (text, label) in enumerate(zip(data.texts, data.labels.tolist(), strict=True)):
        bad = trigger and at % trigger == 0
        rows.append(
            {"text": f"{TRIGGER} {text}" if bad else text, "label": target if bad and target else label}
        )
    write_rows(path, rows)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained encoder, a classifier tuned from it on poisoned rows, and files of rows."""
    from asepsis.training import Settings, defend

    folder = tmp_path_factory.mktemp("docs")
    settings = Settings(epochs=3, learning_rate=5e-3, batch_size=16, device="cpu", precision="fp32")
    model, tokenizer = tiny_classifier(0)
    defend(model, tiny_rows(240, 7), defense=None, processing_class=tokenizer, settings=settings)
    for part in (model.bert, tokenizer):
        part.save_pretrained(folder / "pretrained")
    write(folder / "untrusted.jsonl", tiny_rows(240, 1), trigger=10, target=1)
    defend(model, folder / "untrusted.jsonl", defense=None, processing_class=tokenizer, settings=settings)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "tuned")
    write(folder / "trusted.jsonl", tiny_rows(240, 2))
    write(folder / "inputs.jsonl", tiny_rows(40, 3), trigger=4)
    return folder


@pytest.mark.parametrize("name", pages())
def test_the_examples_of_a_page_run(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asepsis.defenses

    place = tmp_path / "here"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    monkeypatch.delitem(sys.modules, "asepsis.defenses.lowest", raising=False)
    monkeypatch.setattr(
        asepsis.defenses, "__path__", [*asepsis.defenses.__path__, str(tmp_path / "defenses")]
    )
    for module in ("psim", "_psim_module"):
        # the tiny model has no depth in which LoRA could take its certainty away; virtual tokens and a head that trains do
        monkeypatch.setattr(f"asepsis.defenses.{module}.kind_for", lambda *_: "p_tuning")
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(BEFORE.get(name, ""), "<before>", "exec"), names)
    for block in examples((ROOT / "docs" / name).read_text(encoding="utf-8")):
        if block.skipped:
            continue
        if (
            block.title is not None
        ):  # a file, not a script: one of the package goes where the package finds it
            if block.title.startswith("python/asepsis/"):
                file = tmp_path / Path(block.title).relative_to("python/asepsis")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.code, encoding="utf-8")
            continue
        # the same line numbers in a traceback as on the page
        source = "\n" * (block.line - 1) + block.code.replace('"demo:encoder"', '"pretrained"')
        exec(compile(source, f"docs/{name}", "exec"), names)  # the point of this test


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("```python\na = 1\n```\n", [2]),
        ("x\n\n<!-- not run: a fragment -->\n```python\na\n```\n\n```python\nb\n```\n", [5, 9]),
        ("```console\nls\n```\n", []),
        ("   ```python\nindented\n```\n", []),
    ],
)
def test_examples_are_found_with_their_lines(text: str, lines: list[int]) -> None:
    found = examples(text)
    assert [block.line for block in found] == lines
    assert [block.skipped for block in found] == [True, False][: len(found)] or len(found) == 1


def test_a_page_may_say_why_an_example_is_not_run_and_has_to() -> None:
    assert examples("<!-- not run: needs a GPU -->\n```python\na\n```\n")[0].skipped
    assert not examples("<!-- not run: -->\n```python\na\n```\n")[0].skipped


def test_no_python_example_hides_from_this_test() -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert text.count("```python") == len(examples(text)), path
