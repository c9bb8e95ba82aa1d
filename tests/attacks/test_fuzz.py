"""Anything at all, drawn by chance: readers answer with rows, or with an error that names the file. Never with another."""

from __future__ import annotations

import json
import struct

import pytest
from hostile.tensors import whole
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asepsis.errors import AsepsisError

pytestmark = pytest.mark.timeout(1200)

RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=RELAXED)
LONG = settings(max_examples=2000, deadline=None, suppress_health_check=RELAXED)

BUDGETS = [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4)
)
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-4, 70) | st.floats() | st.none()
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X"]) | SCALARS,
        "shape": st.lists(NUMBERS, max_size=4) | SCALARS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | SCALARS,
    },
)
HEADER = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), ENTRY | JSON, max_size=3) | JSON


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_header_is_read_or_refused(budget, tmp_path):
    from asepsis.core.weights.headers import read_header

    path = tmp_path / "model.safetensors"

    @budget
    @given(HEADER, st.binary(max_size=64), st.none() | st.integers(0, 2**64 - 1))
    @example({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4, None)
    @example({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, b"", None)
    @example({"__metadata__": None}, b"", None)
    def check(header, body, length):
        path.write_bytes(whole(json.dumps(header).encode(), body, length=length))
        try:
            found = read_header(path)
        except AsepsisError as error:
            assert str(path) in str(error) or path.name in str(error)
            return
        for tensor in found.values():
            assert tensor.offset + tensor.nbytes <= path.stat().st_size
            assert tensor.nbytes >= 0

    check()


@pytest.mark.parametrize("budget", BUDGETS)
def test_bytes_are_read_as_a_header_or_refused(budget, tmp_path):
    from asepsis.core.weights.headers import read_header

    path = tmp_path / "model.safetensors"

    @budget
    @given(st.binary(max_size=200))
    @example(struct.pack("<Q", 2) + b"{}")
    @example(struct.pack("<Q", 2) + b"[]")
    def check(raw):
        path.write_bytes(raw)
        try:
            read_header(path)
        except AsepsisError as error:
            assert str(path) in str(error)

    check()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_bytes_are_read_as_rows_or_refused(budget, suffix, tmp_path):
    from asepsis.data import read

    path = tmp_path / f"rows{suffix}"
    likely = st.lists(
        st.sampled_from(
            [
                '"text"',
                '"label"',
                "text",
                "label",
                "0",
                "1",
                ":",
                ",",
                "{",
                "}",
                "[",
                "]",
                "\n",
                "\t",
                '"',
                "a",
            ]
        )
    )

    @budget
    @given(
        st.binary(max_size=200)
        | likely.map(lambda parts: "".join(parts).encode())
        | JSON.map(lambda v: json.dumps(v).encode())
    )
    @example(b"")
    @example(b"PAR1PAR1")
    @example(b'{"text": "a", "label": 0}')
    @example(b"text,label\na,0\n")
    @example(b"\xef\xbb\xbf[]")
    def check(raw):
        path.write_bytes(raw)
        try:
            rows = read(path)
        except AsepsisError as error:
            assert str(path) in str(error)
            assert len(str(error)) < 1500
        else:
            assert len(rows) >= 1

    check()


@pytest.mark.parametrize("budget", BUDGETS)
def test_rows_in_memory_are_taken_or_refused(budget):
    from asepsis.data import read

    @budget
    @given(
        st.lists(
            st.dictionaries(st.sampled_from(["text", "label", "prompt", "messages"]), JSON) | JSON, max_size=3
        )
    )
    @example([{"text": "a", "label": 10**5000}])
    @example([{"text": "a", "label": 1e308}])
    def check(rows):
        try:
            read(rows)
        except AsepsisError as error:
            assert len(str(error)) < 1500

    check()


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_damaged_ledger_is_refused(budget, sound, tmp_path):
    from asepsis.core.ledger import LossLedger
    from asepsis.errors import LedgerError

    intact = (sound / "ledgers" / "ledger.safetensors").read_bytes()
    wanted = LossLedger.load(sound / "ledgers" / "ledger.safetensors").scores().tolist()
    path = tmp_path / "ledger.safetensors"

    @budget
    @given(st.integers(0, len(intact) - 1), st.binary(min_size=1, max_size=8), st.booleans())
    @example(0, b"\xff" * 8, False)
    def check(at, put, cut):
        raw = intact[:at] + put + intact[at + len(put) :]
        path.write_bytes(raw[:at] if cut else raw)
        try:
            found = LossLedger.load(path)
        except LedgerError as error:
            assert str(path) in str(error)
        else:  # blanks in a header mean nothing
            assert found.scores().tolist() == wanted

    check()


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_config_is_built_or_refused(budget):
    from asepsis.defenses import available, load

    kinds = [load(name).config_type for name in available()]
    fields = sorted({name for kind in kinds for name in kind.__dataclass_fields__})

    @budget
    @given(
        st.sampled_from(kinds),
        st.dictionaries(st.sampled_from(fields) | st.text(max_size=5), JSON, max_size=3),
    )
    def check(kind, values):
        try:
            built = kind.from_dict(values)
        except AsepsisError:
            return
        json.dumps(built.to_dict())

    check()


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_folder_is_admitted_or_refused(budget, sound, tmp_path):
    import shutil

    from asepsis.core.weights.admission import admit, admit_adapter

    model = shutil.copytree(sound / "model", tmp_path / "model")
    adapter = shutil.copytree(sound / "adapter", tmp_path / "adapter")
    names = ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]
    doors = [*((model / name, admit) for name in names), (adapter / "adapter_config.json", admit_adapter)]
    kept = {path: json.loads(path.read_text()) if path.exists() else {} for path, _ in doors}
    keys = sorted({key for content in kept.values() for key in content})

    @budget
    @given(st.sampled_from(doors), st.dictionaries(st.sampled_from(keys), JSON, max_size=2) | JSON)
    def check(door, values):
        path, admitting = door
        path.write_text(json.dumps({**kept[path], **values} if isinstance(values, dict) else values))
        try:
            admitting(path.parent)
        except AsepsisError as error:
            assert str(path.parent) in str(error)
        finally:
            path.write_text(json.dumps(kept[path]))

    check()
