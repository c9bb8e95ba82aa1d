"""The table of verbs, and the typer application made from it.

A verb is a file: ``asepsis purify`` is the function ``purify`` in ``cli/purify.py``, ``asepsis scan data`` the function
``scan_data`` in ``cli/scan_data.py``. Its module is imported when the verb is named on the command line and at no
other time, so ``asepsis --help`` costs no import of torch. A verb returns an :class:`~asepsis.cli._exit.ExitCode`, or
None for done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from asepsis.cli._exit import ExitCode, translate

Table = Mapping[str, "str | Table"]

#: Name to the first line of its help; a table inside the table is a group, its own line under "".
VERBS: Table = {
    "doctor": "Say what is installed, which GPU is seen, which kernels run and why not.",
    "demo": "Show the main job on packaged real text: ABL against BadNets, beside its controls.",
    "attack": "Poison a file or a model's weights for evaluation, or make triggered test rows.",
    "train": "Train on untrusted rows under a defense.",
    "purify": "Repair a finished model with the model it was tuned from.",
    "evaluate": "Measure clean accuracy, and attack success where triggered rows are given.",
    "scan": {
        "": "Look for poison.",
        "data": "Say which rows look poisoned.",
        "model": "Compare a model with its base: which tokens moved more than training explains.",
    },
    "guard": {
        "": "Flag triggered inputs of a finished model.",
        "fit": "Fit a detector to a model on clean rows, at a wanted false-positive rate.",
        "check": "Say which rows of a file look triggered.",
    },
    "bench": {
        "": "Measure what the documentation claims.",
        "defenses": "Run a grid of defenses against attacks, each beside its controls, and print its table.",
    },
    "report": "Make a page, Markdown or SARIF of an output folder.",
    "export": "Write a trained folder as plain files, or merge its adapter into its base.",
    "verify": "Say whether a folder, its data and its base are still what its manifest says.",
    "cite": "Print the reference of a defense's paper.",
}


def load(path: Sequence[str]) -> Callable[..., Any]:
    """Import the verb named by its words, ``("scan", "data")`` say, and return its function."""
    name = "_".join(path)
    function: Callable[..., Any] = getattr(import_module(f"asepsis.cli.{name}"), name)
    return function


def build(argv: Sequence[str], verbs: Table = VERBS) -> typer.Typer:
    """Return the application, with the verbs that ``argv`` names imported and the others as names with a help line."""
    app = typer.Typer(
        callback=_global_options, help="Train clean language models from untrusted data.", **_LOOK
    )
    _fill(app, verbs, (), argv)
    return app


def run(argv: Sequence[str], verbs: Table = VERBS) -> int:
    """Run one command line and return its exit code (see :class:`~asepsis.cli._exit.ExitCode`)."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    debug = "--debug" in argv[:end]
    # appended to a line that failed as often as put in front, so it is taken from anywhere
    words = [word for word in argv[:end] if word != "--debug"] + list(argv[end:])
    with translate(debug=debug) as outcome:
        command = typer.main.get_command(build(words, verbs))
        answer = command.main(args=words or ["--help"], prog_name="asepsis", standalone_mode=False)
        if answer == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt  # typer makes a number of it and says nothing
        outcome.code = answer if isinstance(answer, int) else ExitCode.OK
    # an empty variable in a script must not look like success
    return int(outcome.code if words else ExitCode.USAGE)


# no rich: it costs more than the rest of `--help` together, and plain text pastes well into an issue
_LOOK: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def _fill(app: typer.Typer, verbs: Table, path: tuple[str, ...], argv: Sequence[str]) -> None:
    for name, entry in verbs.items():
        if name == "":
            continue
        if isinstance(entry, str):
            if name in argv:
                app.command(name, short_help=entry)(load((*path, name)))
            else:
                app.command(name, short_help=entry)(_unnamed)
        else:
            group = typer.Typer(help=str(entry[""]), **_LOOK)
            _fill(group, entry, (*path, name), argv)
            app.add_typer(group, name=name)


def _unnamed() -> None:
    """Stand for a verb that the command line does not name: it is listed, never called."""


def _say_version(wanted: object) -> None:
    if wanted:
        from asepsis import __version__

        typer.echo(f"asepsis {__version__}")
        raise typer.Exit


def _global_options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks. Accepted anywhere on the line.")
    ] = False,
) -> None:
    pass
