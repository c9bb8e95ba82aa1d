"""Hostile data: refused with its place, or taken as it stands; and shown so that a reader can see through it."""

from __future__ import annotations

import json
import re
import signal

import pytest
from hostile import shown
from hostile.folders import MARKER
from hostile.rows import ODD, ROWS, SHOWN

from asepsis.data import read, read_rows, write_rows
from asepsis.errors import AsepsisError, DataError


def only(folder):
    (found,) = folder.iterdir()
    return found


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_hostile_rows_are_refused_with_their_place(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    case.make(tmp_path / "in")
    file = only(tmp_path / "in")
    signal.alarm(120)  # a pipe that is waited for would wait for ever
    try:
        with pytest.raises(DataError) as caught:
            read(file, id_column="id" if case.name.startswith("the ids") else None)
    finally:
        signal.alarm(0)
    said = str(caught.value)
    assert re.search(case.says, said), said
    assert str(file) in said
    assert len(said) < 1000
    assert said.isprintable()
    assert not (tmp_path / MARKER).exists()


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("case", ODD, ids=lambda case: case.name)
def test_odd_rows_are_taken_as_they_stand(case, tmp_path):
    case.make(tmp_path)
    rows = read(only(tmp_path))
    with only(tmp_path).open(encoding="utf-8") as lines:
        assert rows.texts[0] == json.loads(next(lines))["text"]


@pytest.mark.slow
def test_a_row_of_ten_million_characters_is_cut_and_trained_on(tmp_path):
    from asepsis import defend
    from asepsis.testing import tiny_classifier
    from asepsis.training import Settings

    network, tokenizer = tiny_classifier(0)
    rows = [{"text": "word1 " * (10**7 // 6), "label": 0}, {"text": "topic1a", "label": 1}]
    chosen = Settings(max_steps=1, batch_size=2, max_length=16, device="cpu", precision="fp32")
    run = defend(network, rows, defense=None, processing_class=tokenizer, settings=chosen)
    assert run.manifest["steps"] == 1


HOSTILE = "".join(SHOWN.values())
#: Characters that would steer, hide or reorder what stands around them.
STEERING = sorted(
    {c for c in HOSTILE if not c.isprintable()} | set("\u3164\u115f\u2800\uffa0\u034f\ufe0f\U000e0100")
)


def check_inert(page: str, *, lines: bool = True) -> None:
    allowed = {"\n"} if lines else set()
    assert not [f"{ord(c):04X}" for c in STEERING if c in page and c not in allowed]


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_shows_what_hides_and_runs_nothing(name):
    page = shown.page([SHOWN[name], "fine"])
    check_inert(page)
    for live in ("<script", "<img", "onerror=alert(1)>", "</pre></title>"):
        assert live not in page.lower().replace("&lt;", "")
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", SHOWN)
def test_markdown_shows_what_hides_and_holds_no_markup_of_the_rows(name):
    text = shown.markdown([SHOWN[name], "fine"])
    check_inert(text)
    outside = re.sub(r"`[^`\n]*`", "", text)
    for live in ("<script", "<img", "](javascript", "{{ 7", "</pre>"):
        assert live not in outside.lower()
    # every row of a table has the cells of its head: a pipe of the text's opens none
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize("name", SHOWN)
def test_code_scanning_gets_plain_text(name):
    raw = json.dumps(shown.sarif([SHOWN[name], "fine"]))
    assert raw.isascii()
    assert json.loads(raw)["runs"][0]["results"]


@pytest.mark.parametrize("name", SHOWN)
def test_tokens_and_tensors_are_shown_by_their_codes(name):
    told = shown.token(SHOWN[name])
    check_inert(told, lines=False)
    assert len(told) <= 61


@pytest.mark.parametrize("name", SHOWN)
def test_a_terminal_is_told_codes(name, capsys):
    from asepsis.cli._exit import ExitCode, translate

    with translate(debug=False) as result:
        raise DataError(f"rows.jsonl: {SHOWN[name]}")
    assert result.code == ExitCode.ERROR
    check_inert(capsys.readouterr().err)


def test_a_message_of_a_megabyte_is_cut(capsys):
    from asepsis.cli._exit import translate

    with translate(debug=False):
        raise DataError("a" * 10**6)
    assert len(capsys.readouterr().err) < 2100


@pytest.mark.parametrize("name", [name for name in SHOWN if "formula" in name])
def test_a_formula_in_a_table_is_warned_of_and_kept(name, tmp_path, caplog):

    write_rows(tmp_path / "out.csv", [{"text": SHOWN[name], "label": 0}, {"text": "-1.5", "label": -1}])
    assert "1 fields begin with" in caplog.text
    assert "spreadsheet" in caplog.text
    assert read_rows(tmp_path / "out.csv")[0]["text"] == SHOWN[name]


def test_numbers_are_no_formulas(tmp_path, caplog):

    write_rows(
        tmp_path / "out.csv",
        [{"text": "a", "label": 0, "score": -1.5}, {"text": "b", "label": 1, "score": "+2e-3"}],
    )
    assert not caplog.records


def test_equal_texts_of_a_packed_file_stand_in_memory_once(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, None] * 10, pa.int32()), pa.array(["a" * 1000, "b"])
    )
    pq.write_table(pa.table({"text": text, "label": [0] * 30}), tmp_path / "a.parquet")

    rows = read_rows(tmp_path / "a.parquet")
    assert [row["text"] for row in rows] == ["a" * 1000, "b", None] * 10
    assert rows[0]["text"] is rows[3]["text"]


def test_conversations_in_a_packed_file_are_read_as_they_are(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    pq.write_table(pa.table({"messages": [turns, turns[:2]]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").responses == ["yes", "yes"]


def test_an_answer_key_of_a_stranger_is_refused(tmp_path):
    from asepsis.evaluation.key import PoisonKey

    for content in (
        "{",
        "[1]",
        '{"row": -1, "poisoned": 1}',
        '{"row": 1e999, "poisoned": 1}',
        '{"row": 0, "poisoned": 2}',
    ):
        (tmp_path / "key.jsonl").write_text(content)
        with pytest.raises(AsepsisError, match=r"line 1"):
            PoisonKey.load(tmp_path / "key.jsonl")
