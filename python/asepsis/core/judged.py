"""``asepsis_rows.jsonl``: what a run says of every row, and the texts of those that a person should look at.

One line a row, in row order: ``sample_id``, ``suspicion`` (higher is worse; null where the run judged none),
``flagged`` and ``isolated``. The most suspicious of the flagged rows, 200 at most, or 20 where none is flagged, also
carry ``text``, cut to 300 characters, and ``label`` or ``response``. These are the attacker's words, and rows of the
training data: :mod:`asepsis.training.export` leaves the file behind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.data.visible import LONGEST
from asepsis.errors import CheckpointError

MOST_LISTED = 200
_UNFLAGGED = 20


@dataclass(frozen=True)
class Listed:
    """One row with its text. ``row`` counts lines from 0; the text may have been cut and is not made visible yet."""

    row: int
    text: str
    label: int | None
    response: str | None


@dataclass(frozen=True)
class Judged:
    """The file read again; arrays ``[N]`` in row order.

    Attributes
    ----------
    suspicion : ndarray float32 [N] or None
        NaN for a row without one; None where the run judged no row.
    listed : list of Listed
        Most suspicious first.
    """

    sample_ids: NDArray[np.int64]
    suspicion: NDArray[np.float32] | None
    flagged: NDArray[np.bool_]
    isolated: NDArray[np.bool_]
    listed: list[Listed]


def write_judged(
    path: Path,
    data: Data,
    *,
    suspicion: NDArray[np.float32] | None,
    flagged: NDArray[np.bool_],
    isolated: NDArray[np.bool_] | None = None,
) -> None:
    """Write the judgment of every row of ``data``, ``[N]`` each."""
    listed = (
        {} if suspicion is None else {int(at): _texts(data, int(at)) for at in _to_list(suspicion, flagged)}
    )
    with path.open("w", encoding="utf-8") as file:
        for at, sample_id in enumerate(data.sample_ids.tolist()):
            score = None if suspicion is None else float(suspicion[at])
            row = {
                "sample_id": sample_id,
                "suspicion": score if score is None or np.isfinite(score) else None,
                "flagged": bool(flagged[at]),
                "isolated": isolated is not None and bool(isolated[at]),
            }
            file.write(json.dumps(row | listed.get(at, {})) + "\n")


def read_judged(path: Path) -> Judged:
    """Read what :func:`write_judged` wrote.

    Raises
    ------
    CheckpointError
        The file cannot be read, or a line is none of these; the message has its number.
    """
    rows: list[tuple[int, float | None, bool, bool]] = []
    listed: list[Listed] = []
    try:
        with path.open(encoding="utf-8") as file:
            for at, line in enumerate(file):
                entry = json.loads(line)
                score = entry["suspicion"]
                if "text" in entry:
                    listed.append(_listed(at, entry))
                rows.append(
                    (
                        int(np.int64(entry["sample_id"])),
                        None if score is None else float(score),
                        entry["flagged"] is True,
                        entry["isolated"] is True,
                    )
                )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path}, line {len(rows) + 1}: no judged row: {error}") from error
    scores = np.array([np.nan if row[1] is None else row[1] for row in rows], np.float32)
    order = np.argsort(-np.nan_to_num(scores[[one.row for one in listed]], nan=-np.inf), kind="stable")
    return Judged(
        np.array([row[0] for row in rows], np.int64),
        None if all(row[1] is None for row in rows) else scores,
        np.array([row[2] for row in rows], bool),
        np.array([row[3] for row in rows], bool),
        [listed[at] for at in order],
    )


def _to_list(suspicion: NDArray[np.float32], flagged: NDArray[np.bool_]) -> NDArray[np.int64]:
    order = np.argsort(-np.nan_to_num(suspicion, nan=-np.inf), kind="stable")
    return order[flagged[order]][:MOST_LISTED] if flagged.any() else order[:_UNFLAGGED]


def _texts(data: Data, at: int) -> dict[str, Any]:
    # one character more than is shown says that there was more
    found: dict[str, Any] = {"text": data.texts[at][: LONGEST + 1]}
    if data.labels is not None:
        found["label"] = int(data.labels[at])
    if data.responses is not None:
        found["response"] = data.responses[at][: LONGEST + 1]
    return found


def _listed(at: int, entry: dict[str, Any]) -> Listed:
    text, label, response = entry["text"], entry.get("label"), entry.get("response")
    if not isinstance(text, str) or not isinstance(label, int | None) or not isinstance(response, str | None):
        raise TypeError("a text, label or response of another type")
    return Listed(at, text, label, response)
