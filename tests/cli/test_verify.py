"""``asepsis verify`` says with its exit code whether a folder is what was written."""

from __future__ import annotations

import json

import pytest

from asepsis import Settings, defend
from asepsis.cli import main
from asepsis.testing import tiny_classifier, tiny_rows


@pytest.fixture
def made(tmp_path):
    base, tokenizer = tiny_classifier(0)
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "base")
    rows = tiny_rows(24, 0)
    lines = [
        json.dumps({"text": text, "label": int(label)})
        for text, label in zip(rows.texts, rows.labels, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    settings = Settings(max_steps=2, batch_size=8, device="cpu")
    run = defend(str(tmp_path / "base"), tmp_path / "rows.jsonl", defense=None, settings=settings)
    run.save_pretrained(tmp_path / "out")
    return tmp_path


def verified(made, capsys, *options):
    code = main(["verify", str(made / "out"), *map(str, options)])
    return code, capsys.readouterr().out


def test_an_untouched_run_is_intact_with_its_data_and_base(made, capsys):
    code, said = verified(
        made, capsys, "--data", made / "rows.jsonl", "--base", made / "base", "--json", made / "v.json"
    )
    assert code == 0 and said.startswith("intact")
    assert json.loads((made / "v.json").read_text())["verdict"] == "intact"


def test_a_swapped_file_a_swapped_row_and_a_swapped_base_are_findings(made, capsys):
    (made / "rows.jsonl").write_text((made / "rows.jsonl").read_text().replace("0}", "1}", 1))
    assert verified(made, capsys, "--data", made / "rows.jsonl")[0] == 1
    config = made / "base" / "config.json"
    config.write_text(config.read_text() + " ")
    assert verified(made, capsys, "--base", made / "base")[0] == 1
    (made / "out" / "config.json").write_text("{}")
    code, said = verified(made, capsys)
    assert code == 1 and "changed  'config.json'" in said


def test_a_folder_without_a_manifest_cannot_be_verified(made, capsys):
    assert main(["verify", str(made / "base")]) == 2
    assert "no asepsis.json" in capsys.readouterr().err
