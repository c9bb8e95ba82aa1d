"""Guard folders, manifests and ledgers that lie. Made from sound ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from hostile import Corpus
from hostile.folders import Payload

GUARDS = Corpus("guards")
MANIFESTS = Corpus("manifests")
LEDGERS = Corpus("ledgers")

_BROKEN = "(is|or) broken|cannot be read|no detector|is no guard"


def saved(name: str, says: str, *path: str, value: Any) -> None:
    """Add a case that puts a value somewhere into ``guard.json``."""

    def make(folder: Path) -> None:
        content = json.loads((folder / "guard.json").read_text())
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (folder / "guard.json").write_text(json.dumps(content))

    GUARDS.add(name, says)(make)


def raw(corpus: Corpus, file: str, name: str, content: str | bytes, says: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    corpus.add(name, says)(lambda folder: (folder / file).write_bytes(data) and None)


saved("a threshold that is NaN", "threshold's value", "threshold", "value", value=float("nan"))
saved("a threshold that is infinite", "threshold's value", "threshold", "value", value=float("inf"))
saved("a threshold that is text", "threshold's value", "threshold", "value", value="high")
saved("a threshold that is true", "threshold's value", "threshold", "value", value=True)
saved("a threshold with a stranger", _BROKEN, "threshold", "evil", value=1)
saved("a threshold that is a list", _BROKEN, "threshold", value=[1])
saved("a detector by a path", "no detector", "manifest", "detector", value="../../evil")
saved("a detector by a module", "no detector", "manifest", "detector", value="os.path")
saved("the base class for a detector", "no detector", "manifest", "detector", value="base")
saved("a detector that is a number", _BROKEN, "manifest", "detector", value=1)
saved("a detector of another kind", _BROKEN, "manifest", "detector", value="strip")
saved("a model on the hub", "which is not here", "manifest", "model", value="evil/model")
saved("a model above", "which is not here", "manifest", "model", value="../../nowhere")
saved("a model that is a number", _BROKEN, "manifest", "model", value=3)
saved("a model that is not named", "does not say where", "manifest", "model", value="")
saved("other weights", "other weights", "manifest", "weights", value="0" * 32)
saved("an unknown task", _BROKEN, "manifest", "task", value="evil")
saved("the other task", "is a|rows are for", "manifest", "task", value="causal")
saved("an unknown format", "format", "manifest", "format", value=99)
saved("a manifest that is a list", _BROKEN, "manifest", value=[])
saved("a state that is a list", _BROKEN, "state", value=[])
saved("a state of nothing", _BROKEN, "state", value={})
saved("a setting that there is not", _BROKEN + "|no field", "state", "config", "evil", value=1)
saved("a calibration that is text", _BROKEN, "calibration", value="scores")
saved("a control without a threshold", _BROKEN, "control", value={"state": {"config": {}}})
for odd in (None, "2", -1, 10**12, 10**400):
    saved(f"a guard of {str(odd)[:20]} classes", _BROKEN, "manifest", "n_classes", value=odd)
    saved(f"texts cut to {str(odd)[:20]} tokens", _BROKEN, "state", "max_length", value=odd)
    saved(f"batches of {str(odd)[:20]} texts", _BROKEN, "state", "batch_size", value=odd)
    saved(f"a question of {str(odd)[:20]} classes", _BROKEN + "|no question", "state", "n_classes", value=odd)
saved("a question with other answers", "no question", "state", "answers", value="evil")
saved("answers of 10**12 tokens", _BROKEN, "state", "config", "tokens", value=10**12)
saved("settings of a detector that are a list", _BROKEN, "state", "config", value=[1])
saved("words that are numbers", "no question", "state", "words", value=[1])
saved("a threshold from no rows", "threshold's n", "threshold", "n", value=0)
saved("a threshold from half a row", "threshold's n", "threshold", "n", value=0.5)
saved("a rate above one", "threshold's shares", "threshold", "expected_fpr", value=2.0)
saved("a rate below zero", "threshold's shares", "threshold", "low", value=-1)
saved("a control that is a list", _BROKEN, "control", value=[1])
saved("a control without a state", _BROKEN, "control", value={"threshold": {}})
raw(GUARDS, "guard.json", "a guard that is no JSON", "{", _BROKEN)
raw(GUARDS, "guard.json", "a guard that is a list", "[]", _BROKEN)
raw(GUARDS, "guard.json", "a guard of nothing", "{}", _BROKEN)
raw(GUARDS, "guard.json", "a guard nested without end", '{"manifest":' * 10**5, _BROKEN)
raw(GUARDS, "guard.json", "a guard that says two things", '{"state": 1, "state": 2}', "twice")
raw(GUARDS, "guard.json", "a guard that is not UTF-8", b"\xff\xfe", _BROKEN)
raw(GUARDS, "guard.json", "a guard that is a pickle", pickle.dumps(Payload()), _BROKEN)

_MANIFEST = "cannot be read|format"
raw(MANIFESTS, "asepsis.json", "a manifest that is no JSON", "{", _MANIFEST)
raw(MANIFESTS, "asepsis.json", "a manifest that is null", "null", _MANIFEST)
raw(MANIFESTS, "asepsis.json", "a manifest nested without end", "[" * 10**5, _MANIFEST)
raw(MANIFESTS, "asepsis.json", "a manifest that says two things", '{"format": 1, "format": 1}', "twice")
raw(MANIFESTS, "asepsis.json", "a manifest of a later format", '{"format": 99}', _MANIFEST)
raw(MANIFESTS, "asepsis.json", "a manifest of a format that is a list", '{"format": [1]}', _MANIFEST)


@MANIFESTS.add("a manifest of 33 MB", "more than")
def _(folder: Path) -> None:
    with (folder / "asepsis.json").open("r+b") as file:
        file.truncate(33 << 20)


def ledger(name: str, says: str = "", **settings: str) -> None:
    """Add a case that changes a ledger's settings and leaves its checksum."""

    def make(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        from hostile.tensors import parts

        file = folder / "ledger.safetensors"
        known = parts(file)[0]["__metadata__"]
        save_file(load_file(file), file, metadata={**known, **settings})

    LEDGERS.add(name, says or "ledger|not as it was written")(make)


for wrong in ("-1", "0", str(2**63), str(10**30), "9" * 5000, "ten", "1e9", ""):
    ledger(f"a ledger of {wrong[:20] or 'no'} samples", n=wrong)
for wrong in ("nan", "inf", "-0x1p+0", "0x1p+9999", "1.0.0", ""):
    ledger(f"a ledger that decays by {wrong or 'nothing'}", ema_decay=wrong)
ledger("a ledger of another format", format="evil")
ledger("a ledger with a stranger among its settings", evil="1")
ledger("a ledger without a checksum", crc32="")
ledger("a ledger with another checksum", crc32="00000000")
raw(LEDGERS, "ledger.safetensors", "a ledger of nothing", b"", "cannot be read")
raw(LEDGERS, "ledger.safetensors", "a ledger that is a pickle", pickle.dumps(Payload()), "cannot be read")


@LEDGERS.add("a ledger with a bit turned", "not as it was written|ledger")
def _(folder: Path) -> None:
    file = folder / "ledger.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)


@LEDGERS.add("a ledger cut short", "cannot be read")
def _(folder: Path) -> None:
    file = folder / "ledger.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


@LEDGERS.add("a ledger with a tensor more", "is no ledger")
def _(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from hostile.tensors import parts

    file = folder / "ledger.safetensors"
    known = parts(file)[0]["__metadata__"]
    save_file({**load_file(file), "evil": np.zeros(1, np.float32)}, file, metadata=known)
