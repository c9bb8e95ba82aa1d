"""Train a text classifier on poisoned rows under a defense, and measure it beside the undefended control.

    python examples/classifier.py [--defense abl] [--rows 3000] [--small]

Offline: the packaged film reviews, a tenth of them poisoned with the word "cf", and the packaged encoder.
"""

from __future__ import annotations

import argparse

import asepsis
from asepsis.data import demo_rows
from asepsis.evaluation.attacks import BADNETS, poison_labels, triggered_test
from asepsis.evaluation.predict import measure

TARGET = 1


def main() -> None:
    """Poison, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--defense", default="abl", choices=["abl", "btu", "musclelora"])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument(
        "--small", action="store_true", help="a minute's worth: shows that it runs, not how well"
    )
    options = parser.parse_args()
    rows, tested, steps = (96, 40, 4) if options.small else (options.rows, 1000, None)
    settings = asepsis.Settings(
        epochs=2, max_steps=steps, batch_size=16 if options.small else 32, max_length=64
    )
    chosen: asepsis.AblConfig | str = options.defense
    if options.small and chosen == "abl":
        chosen = asepsis.AblConfig(snapshots=(3, 6), grow_steps=2)

    # in your own work these are your files: asepsis.read("untrusted.jsonl"), asepsis.read("test.jsonl")
    clean, rest = demo_rows(rows, tested + 128, seed=0)
    test, trusted = rest.select(range(tested)), rest.select(range(tested, tested + 128))
    untrusted, key = poison_labels(clean, BADNETS, poison_rate=0.1, target_label=TARGET, seed=0)
    triggered = triggered_test(test, BADNETS, target_label=TARGET, seed=0)

    for defense in (None, chosen):
        run = asepsis.defend(
            "demo:encoder",
            untrusted,
            defense=defense,
            clean_reference=trusted if chosen == "musclelora" else None,
            settings=settings,
        )
        found = measure(run.model, run.tokenizer, test, triggered, target_label=TARGET, max_length=64)
        success = found.attack_success_rate
        assert success is not None
        name = options.defense if defense else "undefended"
        print(f"{name}: accuracy {found.clean_accuracy.value:.3f}, attack success {success.value:.3f}")

    # only an experiment has a key: your own data has none
    dropped = key.for_ids(run.outcome.flagged)
    print(
        f"verdict: {run.outcome.report.get('verdict', 'none given')}; {dropped.sum()} of {len(dropped)} flagged were poisoned"
    )


if __name__ == "__main__":
    main()
