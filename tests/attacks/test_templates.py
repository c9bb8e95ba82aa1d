"""Chat templates are programs: what they may take is bounded, and what they may reach is nothing."""

from __future__ import annotations

import re

import pytest
from hostile.folders import MARKER
from hostile.templates import TEMPLATES

from asepsis.data import chats, read
from asepsis.errors import DataError
from asepsis.training.models import load_tokenizer

ROW = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]}


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", TEMPLATES, ids=lambda case: case.name)
def test_a_hostile_template_is_refused_with_its_row(case, copied, tmp_path, monkeypatch, denied):
    folder = copied("model")
    case.make(folder)
    if "did not end" in case.says:  # the others end by themselves, on a busy machine late
        monkeypatch.setattr(chats, "SECONDS", 1.5)
    else:
        monkeypatch.setattr(chats, "SECONDS", 90.0)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(DataError) as caught:
        read([ROW], tokenizer=tokenizer)
    said = str(caught.value)
    assert re.search(case.says, said), said
    assert "row 0" in said
    assert "chat template" in said
    assert len(said) < 1000
    assert not (tmp_path / MARKER).exists()
    assert not denied


def test_no_command_renders_a_template(sound, copied, tmp_path, monkeypatch, capsys):
    # the rows of commands are written out as turns; whoever wants a model's own template calls asepsis.read
    from test_weights import DOORS, knock

    folder = copied("model")
    next(case for case in TEMPLATES if case.name == "loops inside loops").make(folder)
    monkeypatch.setattr(chats, "_PROGRAM", "raise SystemExit('rendered')")
    monkeypatch.setattr(
        "transformers.utils.chat_template_utils.render_jinja_template", lambda *_, **__: 1 / 0
    )
    for number, line in enumerate(DOORS.values()):
        _, said = knock(line, capsys, folder=folder, sound=sound, out=tmp_path / f"out-{number}")
        assert "error" not in said, said


def test_what_lies_in_the_working_directory_is_not_imported(copied, tmp_path):
    from hostile.folders import CODE

    for name in ("jinja2.py", "transformers.py", "sitecustomize.py", "json.py"):
        (tmp_path / name).write_text(CODE)
    tokenizer = load_tokenizer(copied("model"))
    tokenizer.chat_template = "{{ messages[0].content }}!"
    assert read([ROW], tokenizer=tokenizer).texts == ["hello!"]
    assert not (tmp_path / MARKER).exists()


def test_the_process_ends_with_the_rows(copied, monkeypatch):
    began = []
    popen = chats.subprocess.Popen
    monkeypatch.setattr(chats.subprocess, "Popen", lambda *a, **k: began.append(popen(*a, **k)) or began[-1])
    tokenizer = load_tokenizer(copied("model"))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert read([ROW] * 3, tokenizer=tokenizer).texts == ["<user>hello"] * 3
    with pytest.raises(DataError, match="row 1"):
        read([ROW, {"messages": []}], tokenizer=tokenizer)
    assert len(began) == 2, "one process for all rows"
    assert all(child.returncode is not None for child in began)
