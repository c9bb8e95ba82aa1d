"""A ledger's file gives back the ledger or an error, whatever was done to it."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from asepsis.core import ledger_file
from asepsis.core.ledger import LossLedger
from asepsis.errors import LedgerError

REDUCERS = ("last", "ema", "mean", "mean_rank", "rank_ema", "auc_loss", "drop", "seep")
N = 70  # over a word of observed bits


def recorded(*, epochs: int = 3, pending: bool = True) -> LossLedger:
    rng = np.random.default_rng(0)
    ledger = LossLedger(N, ema_decay=0.1 + 0.2)
    for epoch in range(epochs + pending):
        positions = rng.permutation(N)[: N - 7 * (epoch % 5)]
        losses = rng.exponential(0.3, len(positions)).astype(np.float32)
        losses[:3] = np.nan, np.inf, -0.0
        ledger.observe(positions, losses)
        if epoch < epochs:
            ledger.end_epoch()
    return ledger


def same(a: LossLedger, b: LossLedger) -> None:
    assert (a.n_samples, a.n_columns) == (b.n_samples, b.n_columns)
    for by in REDUCERS if a.n_columns else ():
        assert a.scores(by).tobytes() == b.scores(by).tobytes()
    for index in range(a.n_columns):
        assert a.column(index).tobytes() == b.column(index).tobytes()
        np.testing.assert_array_equal(a.observed(index), b.observed(index))


@pytest.mark.parametrize("epochs", [0, 1, 11])
@pytest.mark.parametrize("pending", [True, False])
def test_a_saved_ledger_goes_on_to_the_last_bit(tmp_path, epochs, pending):
    ledger = recorded(epochs=epochs, pending=pending)
    ledger.save(tmp_path / "ledger.safetensors")
    again = LossLedger.load(tmp_path / "ledger.safetensors")
    same(ledger, again)
    for one in (ledger, again):
        one.observe(np.arange(5), np.ones(5, np.float32))
        one.end_epoch()
    same(ledger, again)


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "ledger.safetensors"
    recorded(epochs=1).save(path)
    ledger = recorded(epochs=2)
    ledger.save(path)
    same(ledger, LossLedger.load(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ledger.safetensors"
    ledger = recorded(epochs=1)
    ledger.save(path)

    def full(*args, **settings):
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LedgerError, match="no space left"):
        recorded(epochs=2).save(path)
    same(ledger, LossLedger.load(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_a_ledger_error(tmp_path):
    with pytest.raises(LedgerError, match="cannot be written"):
        recorded().save(tmp_path / "none" / "ledger")
    with pytest.raises(LedgerError, match="cannot be read as a ledger"):
        LossLedger.load(tmp_path / "none")
    with pytest.raises(LedgerError, match="cannot be read as a ledger"):
        LossLedger.load(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "ledger.safetensors"
    recorded().save(path)
    return path


def load_bytes(folder, data: bytes) -> LossLedger | None:
    """The ledger of a file of these bytes, None when it is refused as it should be."""
    path = folder / "changed.safetensors"
    path.write_bytes(data)
    try:
        return LossLedger.load(path)
    except LedgerError:
        return None


def changed_bytes(saved, data) -> None:
    content = bytearray(saved.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[at] ^= data.draw(st.integers(1, 255))
    ledger = load_bytes(saved.parent, bytes(content))
    if ledger is not None:
        same(ledger, LossLedger.load(saved))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused_or_change_nothing(saved, data):
    changed_bytes(saved, data)


# the two slow tests stand in for a fuzzer
@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused_or_change_nothing_many_times(saved, data):
    changed_bytes(saved, data)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_or_lengthened_files_are_refused(saved, data):
    content = saved.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    assert load_bytes(saved.parent, content[:at]) is None
    assert load_bytes(saved.parent, content + b"\0" * (at + 1)) is None


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "0.losses", "n"]), inner
        ),
    ),
    max_leaves=12,
)


LIES = given(JSON, st.binary(max_size=64), st.one_of(st.none(), st.integers(0, 2**64 - 1)))


def lying_header(folder, header, rest, length) -> None:
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text) if length is None else length) + text + rest
    assert load_bytes(folder, data) is None


@settings(max_examples=200, deadline=None)
@LIES
def test_headers_that_lie_are_refused(tmp_path_factory, header, rest, length):
    lying_header(tmp_path_factory.getbasetemp(), header, rest, length)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@LIES
def test_headers_that_lie_are_refused_many_times(tmp_path_factory, header, rest, length):
    lying_header(tmp_path_factory.getbasetemp(), header, rest, length)


def parts(path):
    with safe_open(str(path), framework="np") as file:
        return load_file(path), file.metadata()


def signed(path, tensors, settings):
    """A file with the right checksum, whatever is in it."""
    settings["crc32"] = f"{ledger_file._checksum(settings, tensors):08x}"
    save_file(tensors, path, metadata=settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, s: t.pop("rank_sum"), "no rank_sum"),
        (lambda t, s: t.pop("1.observed"), "no 1.observed"),
        (lambda t, s: t.pop("1.losses"), "belong to no epoch"),
        (lambda t, s: t.update(loss_ema=t["loss_ema"].astype(np.float64)), "loss_ema must be .* of float32"),
        (lambda t, s: t.update(loss_ema=t["loss_ema"].reshape(7, 10)), "loss_ema must be .* 1-D"),
        (lambda t, s: t.update(loss_ema=t["loss_ema"][:-1].copy()), "loss_ema has length 69, 70 was wanted"),
        (lambda t, s: t.update(epochs_seen=t["epochs_seen"] + np.uint32(1)), "epochs_seen of sample 0"),
        (
            lambda t, s: t.update({"0.observed": t["0.observed"] | np.uint64(1 << 63)}),
            "observed of sample 70",
        ),
        (lambda t, s: t.update(more=np.zeros(1)), "a tensor called 'more'"),
        (lambda t, s: s.update(n="71"), "has length 70, 71 was wanted"),
        (lambda t, s: s.update(n="-1"), "must not be negative"),
        (lambda t, s: s.update(n=str(1 << 70)), "more than there can be"),
        (lambda t, s: s.update(n=str(1 << 62)), "no memory"),
        (lambda t, s: s.update(n="many"), "cannot be read as a ledger"),
        (lambda t, s: s.update(ema_decay="nan"), "ema_decay must be in"),
        (lambda t, s: s.update(ema_decay="0x1p+9999"), "cannot be read as a ledger"),
        (lambda t, s: s.update(format="asepsis ledger 2"), "is no ledger"),
        (lambda t, s: s.update(note="x"), "is no ledger"),
    ],
)
def test_a_state_that_cannot_be_is_refused_even_when_its_checksum_is_right(saved, tmp_path, change, message):
    tensors, about = parts(saved)
    change(tensors, about)
    signed(tmp_path / "made", tensors, about)
    with pytest.raises(LedgerError, match=message):
        LossLedger.load(tmp_path / "made")
