"""The contract of the command as a whole: its verbs, its exit codes, what it says when things go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import asepsis.cli
from asepsis.cli import _app, main
from asepsis.cli._exit import ExitCode
from asepsis.errors import DataError


def verbs(table: _app.Table = _app.VERBS, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    found = []
    for name, entry in table.items():
        if isinstance(entry, str):
            found += [((*path, name), entry)] if name else []
        else:
            found += verbs(entry, (*path, name))
    return found


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Callable[..., int]]:
    """Make a verb called ``planted``, alone and inside a group, that runs the given function."""

    def make(function: Callable[[], object]) -> Callable[..., int]:
        for name in ("planted", "group_planted"):

            def verb() -> object:
                return function()

            module = types.ModuleType(f"asepsis.cli.{name}")
            setattr(module, name, verb)
            monkeypatch.setitem(sys.modules, f"asepsis.cli.{name}", module)
        table: _app.Table = {"planted": "Do as told.", "group": {"": "A group.", "planted": "Do as told."}}
        return lambda *argv: _app.run(list(argv), table)

    return make


@pytest.mark.parametrize(("path", "line"), verbs())
def test_every_verb_exists_and_says_about_itself_what_the_table_says(
    path: tuple[str, ...], line: str
) -> None:
    assert (_app.load(path).__doc__ or "").strip().splitlines()[0] == line


def test_every_file_of_a_verb_is_in_the_table() -> None:
    folder = Path(asepsis.cli.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert files == {"_".join(path) for path, _ in verbs()}


@pytest.mark.parametrize("path", [path for path, _ in verbs()], ids=" ".join)
def test_every_verb_explains_its_options(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    assert f"asepsis {' '.join(path)} " in capsys.readouterr().out


def test_help_lists_every_verb_without_importing_it() -> None:
    program = "import sys; from asepsis.cli import main; main(['--help']); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    *text, loaded = said.splitlines()
    for name, _ in _app.VERBS.items():
        assert any(line.split()[:1] == [name] for line in text)
    assert "asepsis.cli._app" in loaded.split()
    assert not {"asepsis.cli.doctor", "asepsis.cli.cite", "torch", "rich"} & set(loaded.split())


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.FINDINGS, ExitCode.ERROR, ExitCode.NOTHING])
def test_a_verbs_answer_is_the_exit_code(plant: Callable, code: ExitCode) -> None:
    run = plant(lambda: code)
    assert run("planted") == code
    assert run("group", "planted") == code


def test_a_verb_that_answers_nothing_is_done(plant: Callable) -> None:
    assert plant(lambda: None)("planted") == 0


def raising(error: BaseException) -> Callable[[], object]:
    def raise_it() -> object:
        raise error

    return raise_it


def test_our_errors_are_one_line_and_code_two(plant: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert plant(raising(DataError("rows.csv: no column 'text'")))("planted") == 2
    said = capsys.readouterr()
    assert said.err == "asepsis: error: rows.csv: no column 'text'\n"
    assert said.out == ""


def test_a_file_that_cannot_be_opened_is_no_internal_error(
    plant: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plant(lambda: Path("/no/such/file").read_text())("planted") == 2
    said = capsys.readouterr().err
    assert "/no/such/file" in said
    assert "internal" not in said


def test_an_unforeseen_error_is_internal_and_points_to_debug(
    plant: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plant(raising(ZeroDivisionError("oh")))("planted") == 2
    said = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oh" in said
    assert "--debug" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "argv", [("--debug", "planted"), ("planted", "--debug"), ("group", "planted", "--debug")]
)
def test_debug_shows_the_traceback_wherever_it_stands(
    plant: Callable, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    assert plant(raising(DataError("oh")))(*argv) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("asepsis: error: oh\n")


def test_after_two_dashes_debug_is_an_ordinary_word(
    plant: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plant(lambda: None)("planted", "--", "--debug") == 4
    assert "Traceback" not in capsys.readouterr().err


def test_a_library_in_rust_that_gives_up_is_an_error_and_no_finding(
    plant: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    # its error derives from BaseException: Python would print a traceback and end with 1
    from tokenizers import normalizers

    broken = normalizers.Precompiled(b"\x08\0\0\0" + b"\xff" * 8 + b"abc\0")
    run = plant(lambda: broken.normalize_str("é"))
    assert run("planted") == ExitCode.ERROR
    said = capsys.readouterr().err
    assert "error: a library broke on what it was given: index out of bounds" in said
    assert "Traceback" not in said


def test_an_interrupt_is_130(plant: Callable) -> None:
    assert plant(raising(KeyboardInterrupt()))("planted") == 130


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["doctr"], "doctor"),
        (["doctor", "--no-such-option"], "--no-such-option"),
        (["cite"], "Missing argument"),
        (["scan"], "Missing command"),
        (["demo", "--seed", "many"], "--seed"),
    ],
)
def test_a_wrong_line_is_usage_and_is_told_in_two_lines(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert said in lines[0]
    assert "--help" in lines[1]


def test_an_empty_line_shows_the_help_but_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 4
    assert "Commands:" in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"asepsis {asepsis.__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes close differently there")
def test_a_reader_that_stops_reading_causes_no_complaint() -> None:
    program = "import sys; from asepsis.cli import main; sys.stdin.read(); sys.exit(main(['--help']))"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.close()
    child.stdout = None
    _, said = child.communicate(b"", timeout=60)
    assert child.returncode == 141
    assert said == b""
