"""Which rows stand out, and what that says of the model.

Training moves rows by amounts whose logarithm falls about linearly with the logarithm of their rank, and under AdamW,
which bounds each step, falls more slowly towards the top. The line through ranks 20 to 400 therefore runs above the
first ranks of a model trained on clean text. A trigger's row takes a step in one direction in every batch and lands
above the line: its *excess*, in natural logarithms. Only the first
19 ranks can stand out. Two rankings are made, of the drift and of the drift over what
tokens of like frequency did, because a common word hides in the second and a rare one in the first.

The cuts were set on seven fine-tunes of a six-layer encoder and checked on others; docs/scan_model.md has the numbers
and the commands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asepsis.core.drift.result import ModelVerdict, TokenVerdict
from asepsis.core.embeddings import Conditioned, Floats, Mask, Motion

#: Excess from which a token is ``high`` or ``elevated``. Clean calibration runs reached 0.02, triggers 0.30 and more.
HIGH, ELEVATED = 0.2, 0.1
#: Drift over the row's norm from which one of a few edited rows is ``high`` or ``elevated``.
EDITED_HIGH, EDITED_ELEVATED = 0.1, 0.02

_FIRST, _LAST = 20, 400
_ENOUGH = 200
_EDITED = 50
_STRANGER = 0.5


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """Every row's verdict and the model's.

    Attributes
    ----------
    excess
        ``[N]``: the larger of both rankings; NaN where no ranking is possible.
    verdicts
        ``[N]``.
    verdict, reasons
        The model's.
    """

    excess: Floats
    verdicts: list[TokenVerdict]
    verdict: ModelVerdict
    reasons: list[str]


def judge(motion: Motion, conditioned: Conditioned, relative: Floats, protected: Mask) -> Judgment:
    """Judge the compared rows, ``[N]`` each.

    Parameters
    ----------
    motion, conditioned
        Of the rows.
    relative
        Drift over the norm of the base's row.
    protected
        Rows that never count: every text has them.
    """
    counted = motion.seen & ~protected
    n = int(counted.sum())
    excess = np.full(len(protected), np.nan)
    levels = (HIGH, ELEVATED)
    few = n <= _EDITED
    if n >= _ENOUGH:
        drift = np.log(motion.drift[counted])
        ratio = drift - np.log(conditioned.expected[counted])
        excess[counted] = np.maximum(_excess(drift), _excess(ratio))
        deciding = excess
    elif few:
        deciding, levels = relative, (EDITED_HIGH, EDITED_ELEVATED)
    else:
        deciding = np.full(len(protected), np.nan)
    verdicts: list[TokenVerdict] = []
    for at in range(len(protected)):
        if protected[at]:
            verdicts.append("protected")
        elif np.isnan(motion.drift[at]):
            verdicts.append("broken")
        elif not counted[at]:
            verdicts.append("still")
        else:
            value = deciding[at]
            verdicts.append("high" if value > levels[0] else "elevated" if value > levels[1] else "normal")
    verdict, reasons = _model(verdicts, n, relative[counted], few=few)
    return Judgment(excess=excess, verdicts=verdicts, verdict=verdict, reasons=reasons)


def _excess(x: Floats) -> Floats:
    """Return ``[n]``: how far each value lies above the line through the middle ranks, at its own rank.

    A value that is ``high`` takes up no rank: behind four triggers the fifth value is compared as the first.
    """
    order = np.argsort(-x, kind="stable")
    fitted = np.arange(_FIRST, min(_LAST, len(x) // 3) + 1)
    slope, start = np.polyfit(np.log(fitted), x[order[fitted - 1]], 1)
    rank = np.arange(1, len(x) + 1)
    found = x[order] - (start + slope * np.log(rank))
    # within and behind the line what lies above it is a bend of the curve, not a row of its own
    found[_FIRST - 1 :] = np.minimum(found[_FIRST - 1 :], 0.0)
    place = 1
    for at in range(_FIRST - 1):
        found[at] = x[order[at]] - (start + slope * np.log(place))
        place += found[at] <= HIGH
    excess = np.empty(len(x))
    excess[order] = found
    return excess


def _model(
    verdicts: list[TokenVerdict], n: int, relative: Floats, *, few: bool
) -> tuple[ModelVerdict, list[str]]:
    high, elevated = verdicts.count("high"), verdicts.count("elevated")
    if n == 0:
        return "inconclusive", [
            "No evidence: no embedding row moved beyond rounding and weight decay. The embeddings were frozen, the "
            "models are the same, or only other tensors were trained; nothing can be said by token."
        ]
    if np.median(relative) > _STRANGER and n >= _ENOUGH:
        return "inconclusive", [
            f"Half of the rows moved by more than {_STRANGER:.0%} of their norm: this is hardly the base of the model."
        ]
    reasons = []
    if few:
        reasons.append(
            f"Only {n} rows moved and all others are the base's: rows were edited, or training saw very little text."
        )
    if high:
        reasons.append(f"{_tokens(high)} moved far more than the rest of the vocabulary leads one to expect.")
        return "suspicious", reasons
    if n < _ENOUGH:
        why = (
            "none of them far enough to stand out by itself"
            if few
            else f"too few to compare ({_ENOUGH} are needed)"
        )
        return "inconclusive", [*reasons, f"{n} rows moved, {why}."]
    if elevated:
        reasons.append(f"{_tokens(elevated)} moved somewhat more than expected, too little to call it.")
    reasons.append(
        "No embedding anomaly. That is not proof that there is no backdoor: one in other layers, or one triggered by "
        "style or syntax, leaves no trace in single embedding rows."
    )
    return "clean", reasons


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
