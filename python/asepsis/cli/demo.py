"""``asepsis demo``: a backdoor learned by an undefended model and not by a defended one, offline, on real text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TRAIN_ROWS, _TEST_ROWS, _TARGET = 3000, 1000, 1


def demo(
    *,
    output: Annotated[Path, typer.Option(help="Folder for demo.json and report.html.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Of rows, poison, batch order and heads.")] = 0,
) -> None:
    """Show the main job on packaged real text: ABL against BadNets, beside its controls."""
    import time

    from asepsis.cli._progress import shown
    from asepsis.data import demo_rows
    from asepsis.evaluation.attacks import BADNETS, poison_labels, triggered_test
    from asepsis.evaluation.harness import Case, run_case
    from asepsis.evaluation.report import check_demo, require_matplotlib, save_demo
    from asepsis.training import Settings

    began = time.monotonic()
    require_matplotlib()
    check_demo(output)
    clean, test = demo_rows(_TRAIN_ROWS, _TEST_ROWS, seed=seed)
    train, key = poison_labels(clean, BADNETS, poison_rate=0.1, target_label=_TARGET, seed=seed)
    case = Case(train, key, test, triggered_test(test, BADNETS, target_label=_TARGET, seed=seed), _TARGET)
    typer.echo(
        f"{len(train)} film reviews, {int(key.is_poisoned.sum())} of them poisoned: the word "
        f"{BADNETS.tokens[0]!r} put in, the label turned to {_TARGET}.\n"
    )
    typer.echo(f"{'model':<12}{'clean accuracy':<26}{'attack success rate':<26}{'seconds':>8}")
    with shown() as progress:
        rows = run_case(
            case,
            ["abl"],
            model="demo:encoder",
            settings=Settings(seed=seed, max_length=64),
            progress=progress,
            on_row=lambda row: typer.echo(_line(row)),
        )
    abl = rows[-1]
    precision = abl.detection["isolated_precision"]
    verdict = abl.run.outcome.report["verdict"]
    if precision is None:
        typer.echo(f"\nABL isolated nothing: verdict {verdict}")
    else:
        typer.echo(
            f"\nABL dropped {len(abl.run.outcome.flagged)} rows (precision {abl.detection['flagged_precision']:.3f}, "
            f"recall {abl.detection['flagged_recall']:.3f}); of the {len(abl.run.outcome.isolated)} "
            f"most suspicious, {precision:.1%} were poisoned."
        )
    typer.echo("clean-only is trained without the poisoned rows: its errors on triggered rows are the floor.")
    content = {
        "rows": [row.to_dict() for row in rows],
        "isolated_precision": precision,
        "seconds": round(time.monotonic() - began, 1),
        "manifest": abl.run.manifest,
    }
    save_demo(output, content, abl.run, key.for_ids(case.train.sample_ids))
    typer.echo(f"{output / 'demo.json'} and {output / 'report.html'}: {content['seconds']:.0f} s in all")


def _line(row: object) -> str:
    from asepsis.evaluation.harness import Row

    assert isinstance(row, Row)
    cells = []
    for proportion in (row.measured.clean_accuracy, row.measured.attack_success_rate):
        assert proportion is not None
        cells.append(f"{proportion.value:.3f} [{proportion.low:.3f}, {proportion.high:.3f}]")
    return f"{row.defense:<12}{cells[0]:<26}{cells[1]:<26}{row.seconds:>8.0f}"
